"""Odd files: each is refused in one line or read, without a traceback, a hang or a crash of the process.

``LARF_CURATE_FAULTS=full pytest tests/data/test_hostile_files.py -s`` does the full count and prints it.
"""

import gzip
import io
import json
import os
import random
import select
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from larf_curate.data.sources import open_source
from larf_curate.data.tables import no_progress_bars
from larf_curate.errors import LarfCurateError

FILES = 400 if os.environ.get("LARF_CURATE_FAULTS") == "full" else 92
"""Number of odd files: those below, and further ones with random damage."""
SECONDS = 10
"""Time that a file may take."""
MEMORY_MB = 2000
"""Memory that the process may take for all files together, with some 500 MB of libraries."""
ROWS = [{"question": f"What is {i}?", "answer": f"It is {i}, \u00e9\u4f60.", "n": i} for i in range(50)]
ROW = json.dumps(ROWS[0]).encode()
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
CSV = b"question,answer\n" + b"".join(f'"{r["question"]}","{r["answer"]}"\n'.encode() for r in ROWS)


def nested(depth: int, before: bytes, after: bytes, value: bytes = b"1") -> bytes:
    return b'{"question": "a", "x": ' + before * depth + value + after * depth + b"}\n"


def compressed(data: bytes, codec: str = "zstd") -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def archive(kind: str) -> bytes:
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as file:
            file.writestr("a.jsonl", LINES)
    else:
        with tarfile.open(fileobj=sink, mode="w") as file:
            member = tarfile.TarInfo("../../a.jsonl")
            member.size = len(LINES)
            file.addfile(member, io.BytesIO(LINES))
    return sink.getvalue()


def parquet(**options) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), sink, **options)
    return sink.getvalue()


REFUSED = {
    "zip.jsonl": archive("zip"),
    "zip.csv": archive("zip"),
    "tar.jsonl": archive("tar"),
    "tar.csv": archive("tar"),
    "gzip.jsonl": gzip.compress(LINES),
    "zstd.json": compressed(LINES),
    "zip.jsonl.gz": gzip.compress(archive("zip")),
    "gzip.jsonl.gz": gzip.compress(gzip.compress(LINES)),
    "plain.jsonl.gz": LINES,
    "plain.jsonl.zst": LINES,
    "gz.jsonl.zst": gzip.compress(LINES),
    "cut.jsonl.gz": gzip.compress(LINES)[:-20],
    "parquet.jsonl": parquet(),
    "jsonl.parquet": LINES,
    "zipped.parquet": gzip.compress(parquet()),
    "utf16.jsonl": LINES.decode().encode("utf-16"),
    "utf16le.jsonl": LINES.decode().encode("utf-16-le"),
    "utf16.csv": CSV.decode().encode("utf-16"),
    "utf32.json": LINES.decode().encode("utf-32"),
    "latin.jsonl": json.dumps(ROWS[0], ensure_ascii=False).replace("\u4f60", "").encode("latin-1"),
    "nul.jsonl": LINES + b"\0" * 5000,
    "nul.csv": CSV.replace(b"7?", b"\0?"),
    "nuls.jsonl": b"\0" * 5000,
    "null.jsonl": b"null",
    "null.json": b"null\n",
    "nulls.jsonl": b"null\n" * 50,
    "some-nulls.jsonl": LINES + b"null\n",
    "null-after.jsonl": ROW + b"null",
    "list-of-null.json": b"[null]",
    "null-in-list.json": b"[" + ROW + b", null]",
    "numbers.json": b"[1, 2, 3]",
    "number.jsonl": b"7\n",
    "text.jsonl": b'"text"\n',
    "true.jsonl": b"true",
    "brackets.jsonl": b"[" * 20_000,
    "brackets.json": b"[" * 20_000 + b"]" * 20_000,
    "braces.jsonl": b'{"a":' * 20_000,
    "closed.jsonl": b"}" * 20_000 + b"[" * 20_000,
    "deep-list.jsonl": LINES + nested(3000, b"[", b"]"),
    "deep-object.jsonl": nested(3000, b'{"k":', b"}"),
    "deep-mixed.json": b"[" + nested(3000, b'[{"k":', b"}]") + b"]",
    "deepest-list.jsonl": nested(200_000, b"[", b"]"),
    "deepest-object.jsonl": nested(200_000, b'{"k":', b"}"),
    "deep-unquoted.jsonl": b'"\n' + nested(3000, b"[", b"]") + b'{"\\": "\\"}\n' + nested(3000, b"[", b"]"),
    "deep-pretty.json": b'{\n"question": ' + b"[\n" * 3000 + b"]\n" * 3000 + b"}",
    "garbage.jsonl": bytes(range(1, 256)) * 50,
    "html.jsonl": b"<!DOCTYPE html><html><body>404</body></html>\n",
    "pointer.jsonl": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n",
    os.fsdecode(b"caf\xe9.jsonl"): LINES,
}
"""Contents of files that are refused, by name."""
LARGE = {
    "large.jsonl": lambda: b'{"question": "' + b"a" * 2**27 + b'"}\n',
    "large.jsonl.gz": lambda: gzip.compress(b'{"question": "' + b"a" * 200_000_000 + b'"}\n', 1),
    "large.json.zst": lambda: compressed(b'[{"question": "' + b"a" * 200_000_000 + b'"}]'),
    "large.csv.zst": lambda: compressed(b"question,answer\na,b\n" + b"a" * 200_000_000 + b"\n"),
    "spaces.jsonl.zst": lambda: compressed(b" " * 200_000_000),
}
"""Further ones with a row of over 64 MiB, made when they are needed."""
READ = {
    "plain.jsonl": LINES,
    "list.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2).encode(),
    "mark.jsonl": b"\xef\xbb\xbf" + LINES,
    "crlf.jsonl": LINES.replace(b"\n", b"\r\n"),
    "no-end.jsonl": LINES[:-1],
    "blanks.jsonl": LINES.replace(b"\n", b"\n\n  \n"),
    "members.jsonl.gz": b"".join(gzip.compress(line + b"\n") for line in LINES.splitlines()),
    "a.jsonl.zst": compressed(LINES),
    "a.parquet": parquet(),
    "a\nb.jsonl": LINES,
    "ctrl\x1b[31m.jsonl": LINES,
}
"""Contents of files that hold `ROWS`, by name."""
STRUCTURE = '{"[\\"}\\\\\\\\'
"""Text that looks like structure, with escapes."""
READ_AS = {
    "quoted.jsonl": [{"question": "[" * 3000 + '"' + "{" * 3000, "answer": STRUCTURE * 1000}] * 3,
    "escapes.jsonl": [{"question": "\\" * size, "answer": '"' * size + "["} for size in range(300)],
    "nested.jsonl": [{"question": "a", "x": {"y": {"y": {"y": {"y": {"y": {"y": [[[[1]]]]}}}}}}}],
}
"""Rows of further files that are read, by name."""

REASONS = {
    "deep": "nested over 60 deep",
    "large": "larger than 64 MiB",
    "null": "outside of an object",
    "gzip": "compressed with gzip",
    "utf16.": "text in UTF-16",
    "nul.": "NUL byte",
}
"""What the messages about files say whose names begin so."""
SPECIAL = [
    "pipe",
    "socket",
    "device",
    "nothing",
    "folder-pipe",
    "folder-socket",
    "folder-nothing",
    "glob-pipe",
    "saved",
]
"""What is no file, alone, in a folder, by a glob, and in a folder of ``save_to_disk``."""


def make_special(folder: Path, kind: str) -> str:
    """Make what is no file, and return the name to open."""
    folder = folder / kind
    folder.mkdir()
    where, _, what = kind.rpartition("-")
    path = folder / "x.jsonl"
    if kind == "saved":
        save(folder)
        path = next(folder.glob("*.arrow"))
        path.unlink()
        os.mkfifo(path)
        return str(folder)
    if what == "pipe":
        os.mkfifo(path)
    elif what == "socket":
        os.mknod(path, stat.S_IFSOCK | 0o600)
    else:
        path.symlink_to("/dev/zero" if what == "device" else folder / "missing")
    (folder / "good.jsonl").write_bytes(LINES)
    return {"": str(path), "folder": str(folder), "glob": f"{folder}/*.jsonl"}[where]


def save(folder: Path) -> None:
    with no_progress_bars():
        Dataset.from_list(ROWS).save_to_disk(folder)


def damaged(folder: Path, index: int) -> str:
    """A file or a saved dataset with random damage."""
    rng, folder = random.Random(index), folder / f"damaged-{index}"
    folder.mkdir()
    if index % 3 == 0:
        save(folder)
        path = rng.choice([*folder.glob("*.arrow"), *folder.glob("*.arrow"), *sorted(folder.glob("*.json"))])
        name = folder
    else:
        compression = rng.choice(["none", "snappy"])
        contents = {
            "a.parquet": parquet(compression=compression, use_dictionary=rng.random() < 0.5),
            "a.jsonl": LINES,
            "a.json": json.dumps(ROWS).encode(),
            "a.csv": CSV,
            "a.jsonl.gz": gzip.compress(LINES),
            "a.csv.zst": compressed(CSV),
        }
        kind = "a.parquet" if index % 3 == 1 else rng.choice(sorted(contents))
        name = path = folder / kind
        path.write_bytes(contents[kind])
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 5, 50))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    if rng.random() < 0.2:
        data = data[: rng.randrange(len(data))]
    path.write_bytes(data)
    return str(name)


class Reader:
    """A process that opens sources one after the other, and is started again if it ends or is too slow."""

    def __init__(self, home: Path) -> None:
        self.environment = {**os.environ, "LARF_CURATE_HOME": str(home), "HF_HOME": str(home)}
        self.process = None

    def start(self) -> None:
        command = [sys.executable, "-c", "from tests.data.test_hostile_files import serve; serve()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, **pipes, env=self.environment)
        self.process.stdout.readline()

    def __call__(self, name: str) -> tuple[str, object]:
        """How opening a source ends, as ``serve`` says it, or ``hang`` or ``death``."""
        if self.process is None:
            self.start()
        self.process.stdin.write(json.dumps(name).encode() + b"\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        if ready and (line := self.process.stdout.readline()):
            return tuple(json.loads(line))
        self.close()
        return ("death" if ready else "hang"), None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def peak_memory() -> int:
    """Most resident memory of this process so far in MB; ``ru_maxrss`` has that of the process that started it too."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) // 1024


def serve() -> None:
    """Open the sources named by lines of JSON, and answer how each ends, as a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("ready", file=answers, flush=True)  # noqa: T201
    for line in sys.stdin:
        try:
            rows = [row for piece in open_source(json.loads(line)).pieces for row in piece.rows]
            answer = ("rows", json.loads(json.dumps(rows, default=str)))
        except LarfCurateError as error:
            answer = ("refused", str(error))
        except BaseException as error:
            answer = ("traceback", f"{type(error).__name__}: {error}"[:500])
        print(json.dumps([*answer, peak_memory()]), file=answers, flush=True)  # noqa: T201


@pytest.mark.slow
def test_odd_files_are_refused_in_one_line_or_read_as_they_are(tmp_path):
    folder, reader = tmp_path / "files", Reader(tmp_path / "home")
    folder.mkdir()
    wanted = {name: (content, "refused", None) for name, content in REFUSED.items()}
    wanted |= {name: (content, "refused", None) for name, content in LARGE.items()}
    wanted |= {name: (content, "rows", ROWS) for name, content in READ.items()}
    lines = {name: "".join(json.dumps(row) + "\n" for row in rows).encode() for name, rows in READ_AS.items()}
    wanted |= {name: (lines[name], "rows", rows) for name, rows in READ_AS.items()}
    results, wrong, peak = Counter(), [], 0

    def check(name: str, ends: tuple[str, ...], rows: object = None) -> None:
        nonlocal peak
        reason = next((text for start, text in REASONS.items() if Path(name).name.startswith(start)), "")
        end, said, *memory = reader(name)
        results[end] += 1
        peak = max([peak, *memory])
        is_right = end in ends and (rows is None or said == rows)
        is_clear = end != "refused" or (len(said.splitlines()) == 1 and len(said) < 600 and reason in said)
        if not is_right or not is_clear:
            wrong.append((name, end, str(said)[:300]))

    for name, (content, end, rows) in wanted.items():
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        check(str(path), (end,), rows)
        path.unlink()
    for kind in SPECIAL:
        check(make_special(folder, kind), ("refused",))
    for index in range(FILES - sum(results.values())):
        check(damaged(folder, index), ("refused", "rows"))
    reader.close()
    print(f"{sum(results.values())} odd files: {dict(results)}, at most {peak} MB")  # noqa: T201
    assert not wrong
    assert peak < MEMORY_MB
