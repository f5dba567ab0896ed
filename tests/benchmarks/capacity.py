"""Capacity plan: what scoring costs here, measured, and what it would cost for many rows and large models, computed.

    python -m tests.benchmarks.capacity measure --profile PROFILE --data ROWS.jsonl -o measured.json
    python -m tests.benchmarks.capacity plan measured.json --tokens 300 --price 3

``measure`` runs ``larf-curate score`` on two numbers of rows, with one process and with two; rates are those of their
difference, so that loading does not count. Rates per core use processor time, in which other work on the machine does
not count. ``plan`` prints the tables of docs/capacity.md: everything in them is arithmetic with the measured values and
the assumptions that its options name.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from transformers import AutoConfig

from larf_curate.data.sources import ROWS_PER_PIECE, open_source
from larf_curate.files import MAX_JSON_BYTES, read_json, sha256, write_json
from larf_curate.manifests import PLAN
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.journal import read_journal, record_shard
from larf_curate.scoring.scorer import LarfScorer

ROWS = (1_000_000, 100_000_000, 10_000_000_000)
MODELS = {  # parameters of all decoder blocks, width: from the models' configurations
    "135M (SmolLM2)": (106.2e6, 576),
    "1B (Llama 3.2)": (973.1e6, 2048),
    "8B (Llama 3.1)": (6.98e9, 4096),
    "70B (Llama 3.1)": (68.5e9, 8192),
}
SHARDS_TRIED = 100_000
ROWS_PER_FILE = 20


def write_files(data, rows, folder):
    """The first rows of a file as files of a few rows, which processes share."""
    lines = Path(data).read_text(encoding="utf-8").splitlines()[:rows]
    folder.mkdir()
    for first in range(0, len(lines), ROWS_PER_FILE):
        part = lines[first : first + ROWS_PER_FILE]
        (folder / f"{first:05}.jsonl").write_text("\n".join(part) + "\n", encoding="utf-8")


def score(arguments, rows, processes, out):
    """Seconds of clock and processors of a run."""
    data = out.with_name(f"data-{out.name}")
    write_files(arguments.data, rows, data)
    command = [sys.executable, "-m", "larf_curate", "score", str(data), "--profile", arguments.profile]
    command += ["--num-proc", str(processes), "--device", "cpu", "-o", str(out)]
    started, before = time.monotonic(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - started, used


def rates(arguments, processes, folder):
    """Rows per second of clock and of a core, without loading."""
    few, many = arguments.rows
    (clock, cores), (later, more) = (
        score(arguments, rows, processes, folder / f"{processes}-{rows}") for rows in (few, many)
    )
    return {"per_second": (many - few) / (later - clock), "per_core_second": (many - few) / (more - cores)}


def bytes_per_row(path):
    """Bytes of each top-level column of a shard, compressed, divided by its rows."""
    file = pq.ParquetFile(path)
    sizes = Counter()
    for group in range(file.metadata.num_row_groups):
        for column in range(file.metadata.num_columns):
            chunk = file.metadata.row_group(group).column(column)
            sizes[chunk.path_in_schema.split(".")[0]] += chunk.total_compressed_size
    return {name: size / file.metadata.num_rows for name, size in sizes.items()}


def manifest_of(shards, folder):
    """Bytes per shard of a manifest, and the seconds to write and to read one."""
    (record,) = json.loads((folder / "manifest.json").read_text())["shards"][:1]
    path = folder / "many.json"
    start = time.process_time()
    write_json(path, {"shards": [record] * shards})
    written = time.process_time()
    read_json(path)
    return {
        "bytes": path.stat().st_size / shards,
        "write_seconds": written - start,
        "read_seconds": time.process_time() - written,
    }


def journal_of(shards, folder):
    """Seconds per shard to record it in a journal, and to read the journal, which is done once per process."""
    folder.mkdir()
    write_json(folder / PLAN, {})
    plan = sha256(folder / PLAN)
    start = time.process_time()
    for shard in range(shards):
        record_shard(folder, {"file": f"{shard:07}.parquet", "rows": 2500, "bytes": 1, "sha256": plan}, plan=plan)
    written = time.process_time()
    assert len(read_journal(folder)) == shards
    return {"write_seconds": (written - start) / shards, "read_seconds": (time.process_time() - written) / shards}


def measure(arguments):
    profile = SafetyProfile.from_pretrained(arguments.profile)
    rows = open_source(arguments.data, limit=arguments.rows[1]).pieces[0].rows
    scorer = LarfScorer(profile, device="cpu")
    tokens = [len(item.tokens.ids) for item in scorer.renderer()(rows.to_list()) if item.tokens is not None]
    layers = AutoConfig.from_pretrained(profile.source.model_id).num_hidden_layers
    found = {"rows": len(rows), "tokens": sum(tokens) / len(tokens), "layers": profile.layers, "blocks": layers}
    found |= {"dtype": profile.source.dtype, "width": profile.width}
    with tempfile.TemporaryDirectory() as name:
        found["processes"] = {str(count): rates(arguments, count, Path(name)) for count in (1, 2)}
        folder = Path(name) / f"1-{arguments.rows[1]}"
        found["bytes_per_row"] = bytes_per_row(next(folder.glob("*.parquet")))
        found["manifest"] = manifest_of(SHARDS_TRIED, folder)
        found["journal"] = journal_of(SHARDS_TRIED // 20, Path(name) / "journal")
    arguments.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def table(head, rows):
    print("\n| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def number(value):
    """Two significant digits, as people write them."""
    if value >= 10:
        digits = len(str(int(value))) - 2
        return f"{round(value / 10**digits) * 10**digits:,}"
    return f"{value:.2g}"


def size(count):
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} TB"


def duration(seconds):
    return f"{number(seconds)} s" if seconds < 100 else f"{number(seconds / 60)} min"


def plan(arguments):
    found = json.loads(arguments.measured.read_text())
    share = (max(found["layers"]) + 1) / found["blocks"]
    flops = {name: 2 * blocks * share * arguments.tokens for name, (blocks, _) in MODELS.items()}
    print_measured(found, share)
    rate = {name: arguments.peak * arguments.utilisation / value for name, value in flops.items()}
    hours = [[name, number(flops[name] / 1e9), *(number(rows / rate[name] / 3600) for rows in ROWS)] for name in MODELS]
    table(["model", "GFLOP per row", *(f"{rows:,} rows, device hours" for rows in ROWS)], hours)
    cost = [[name, *(number(rows / rate[name] / 3600 * arguments.price) for rows in ROWS)] for name in MODELS]
    table(["model", *(f"{rows:,} rows, cost" for rows in ROWS)], cost)
    print_disk(found, rate)
    print_files(found)


def print_measured(found, share):
    """What was measured here."""
    print(
        f"{found['rows']} rows of {found['tokens']:.0f} tokens, {found['dtype']}, blocks up to {max(found['layers'])}"
    )
    print(f"of {found['blocks']} (share {share:.2f}), width {found['width']}")
    blocks = next(iter(MODELS.values()))[0]
    cells = []
    for count, value in found["processes"].items():
        per_core = value["per_core_second"]
        achieved = per_core * found["tokens"] * 2 * blocks * share / 1e9
        cells.append(
            [count, *(number(x) for x in (value["per_second"], per_core, per_core * found["tokens"], achieved))]
        )
    table(["processes", "rows/s", "rows/s of a core", "tokens/s of a core", "GFLOP/s of a core"], cells)


def print_disk(found, rate):
    """Bytes on disk and on the network."""
    columns = found["bytes_per_row"]
    table(["column", "bytes per row"], [[name, number(value)] for name, value in columns.items()])
    others = sum(value for name, value in columns.items() if name.startswith("larf_") and name != "larf_state")
    data = sum(value for name, value in columns.items() if not name.startswith("larf_"))
    cells = []
    for name, (_, width) in MODELS.items():
        per_row = 2 * width + others + data
        cells.append(
            [
                name,
                number(per_row),
                *(size(rows * per_row) for rows in ROWS),
                size(rate[name] * 3600 * (per_row + data)),
            ]
        )
    table(["model", "bytes per row", *(f"{rows:,} rows" for rows in ROWS), "read and written in a device hour"], cells)


def print_files(found):
    """Numbers of files, and what grows with them."""
    manifest, journal = found["manifest"], found["journal"]
    cells = []
    for rows in ROWS:
        shards = rows / ROWS_PER_PIECE
        reading = shards / SHARDS_TRIED * manifest["read_seconds"], shards * journal["read_seconds"]
        cells.append(
            [f"{rows:,}", number(shards), size(shards * manifest["bytes"]), *map(duration, reading), size(4 * rows)]
        )
    head = ["rows", "shards", "manifest", "to read it", "to read the journal", "scores in memory"]
    table(head, cells)
    shards = int(MAX_JSON_BYTES / manifest["bytes"])
    print(f"\nA manifest of {manifest['bytes']:.0f} bytes per shard reaches {MAX_JSON_BYTES:,} bytes, its limit, at")
    print(f"{shards:,} shards, {shards * ROWS_PER_PIECE:,} rows.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    first = parts.add_parser("measure")
    first.add_argument("--profile", required=True)
    first.add_argument("--data", required=True)
    first.add_argument("--rows", type=int, nargs=2, default=[40, 160])
    first.add_argument("-o", "--output", type=Path, required=True)
    first.set_defaults(run=measure)
    second = parts.add_parser("plan")
    second.add_argument("measured", type=Path)
    second.add_argument("--tokens", type=int, default=300, help="tokens per row")
    second.add_argument("--peak", type=float, default=989e12, help="FLOP/s of a device: an H100 SXM in bfloat16")
    second.add_argument("--utilisation", type=float, default=0.4, help="share of it that is reached")
    second.add_argument("--price", type=float, default=3.0, help="price of a device hour")
    second.set_defaults(run=plan)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
