"""Peak memory of the commands after ``score``, by number of rows: a table, and a plot.

    python -m tests.benchmarks.select_memory --rows 100000 500000 2000000 --width 64 -o FOLDER --plot memory.png

The scored folders have random states and scores, in shards of the size that ``score`` writes. ``select`` flags 5 %,
which ``publish`` leaves out; ``review push`` makes the requests for 5,000 flagged rows, which no server gets. Memory is
that of the process with its libraries: private pages, without those of mapped files, which the system takes back when
needed.

Prints one line of JSON per command, and the table.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from unittest.mock import Mock, patch

import matplotlib.pyplot as plt
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value

from larf_curate.columns import SCORE, scores_digest
from larf_curate.data.sources import ROWS_PER_PIECE
from larf_curate.files import sha256
from larf_curate.manifests import VERSION
from larf_curate.profile import SafetyProfile
from larf_curate.records import write_sealed
from larf_curate.review import ReviewQueue
from larf_curate.scoring.selection import Selection
from larf_curate.scoring.shard import BATCH_ROWS, _groups
from tests.fixtures.review_rows import fake_profile

COMMAND = [sys.executable, "-m", "larf_curate"]
PERIOD = 0.02
"""Seconds between two looks at the process."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--plot", type=Path, help="PNG file to write.")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--push", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.push:
        push(arguments.push, arguments.output)
        return
    found = {}
    for rows in arguments.rows:
        folder = arguments.output / str(rows)
        write_folder(folder, rows, arguments.width)
        for name, command in commands(folder).items():
            found[name, rows] = measured(command, folder)
            print(json.dumps({"command": name, "rows": rows, **found[name, rows]}), flush=True)
        shutil.rmtree(folder)
    names = list(dict.fromkeys(name for name, _ in found))
    print(table(found, names, arguments.rows))
    if arguments.plot:
        plot(found, names, arguments.rows, arguments.plot)


def commands(folder):
    """The commands by name, in the order in which each finds what it reads."""
    scored, selection, few, profile = (folder / name for name in ("scored", "selection", "few", "profile"))
    return {
        "select": [*COMMAND, "select", scored, "--top-ratio", "0.05", "-o", selection],
        "report": [*COMMAND, "report", scored, "-o", folder / "report.html"],
        "diagnose": [*COMMAND, "diagnose", profile, scored],
        "publish": [*COMMAND, "publish", selection, "--to", folder / "published"],
        "select 5,000": [*COMMAND, "select", scored, "--top-k", "5000", "-o", few],
        "review push": [sys.executable, "-m", "tests.benchmarks.select_memory", "--push", few, "-o", profile],
    }


def push(selection, profile):
    """``review push`` with a server that takes everything."""
    store = Mock(records=Mock(return_value=[]), vector_space=Mock(return_value=None), url="")
    queue = ReviewQueue.__new__(ReviewQueue)
    queue.name = "rows"
    with patch.object(ReviewQueue, "_store", return_value=store):
        result = queue.push(Selection.load(selection), profile=SafetyProfile.from_pretrained(profile))
    assert result.pushed == 5000


def write_folder(folder, rows, width):
    """A profile, and a scored folder of random states."""
    scored, rng, shards = folder / "scored", np.random.default_rng(0), []
    scored.mkdir(parents=True)
    profile = fake_profile(rng.normal(size=(120, width)) ** 2)
    profile.save_pretrained(folder / "profile")
    features = Features(
        {
            "question": Value("string"),
            "answer": Value("string"),
            "larf_score": Value("float32"),
            "larf_layer_scores": List(Value("float32"), length=1),
            "larf_signals": {"larf": Value("float32")},
            "larf_status": Value("string"),
            "larf_state": List(Value("float16"), length=width),
        }
    )
    for start in range(0, rows, ROWS_PER_PIECE):
        path = scored / f"part-{len(shards):05d}.parquet"
        table = batch(rng, start, min(ROWS_PER_PIECE, rows - start), width, features.arrow_schema)
        with pq.ParquetWriter(path, features.arrow_schema) as writer:
            for group in _groups(table.slice(first, BATCH_ROWS) for first in range(0, len(table), BATCH_ROWS)):
                writer.write_table(group)
        shards.append({"file": path.name, "rows": pq.read_metadata(path).num_rows, "sha256": sha256(path)})
    scores = pa.chunked_array(
        [part for shard in shards for part in pq.read_table(scored / shard["file"], columns=[SCORE])[0].chunks]
    )
    manifest = {"kind": "scored", "version": VERSION, "package": "larf-curate 0.1.0", "source": {}}
    manifest |= {"profile": profile.summary(), "signals": ["larf"], "rows": rows, "status": {"ok": rows}}
    write_sealed(scored / "manifest.json", manifest | {"scores": scores_digest(scores), "shards": shards})


def batch(rng, first, count, width, schema):
    scores = rng.normal(size=count).astype(np.float32)
    states = rng.normal(size=count * width).astype(np.float16)
    columns = {
        "question": [f"Question {first + i}?" for i in range(count)],
        "answer": [f"Answer {first + i}. " * 20 for i in range(count)],
        "larf_score": scores,
        "larf_layer_scores": pa.FixedSizeListArray.from_arrays(pa.array(scores), 1),
        "larf_signals": [{"larf": float(score)} for score in scores],
        "larf_status": ["ok"] * count,
        "larf_state": pa.FixedSizeListArray.from_arrays(pa.array(states), width),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def measured(command, folder):
    """Seconds, processor time, and peak megabytes of a command, with a cache of its own for the rows."""
    start, private, resident = time.monotonic(), 0, 0
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache")}
    with (folder / "log").open("w") as log:
        process = psutil.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
        while process.poll() is None:
            info, times = process.memory_info(), process.cpu_times()
            private, resident = max(private, info.rss - info.shared), max(resident, info.rss)
            time.sleep(PERIOD)
    if process.returncode:
        sys.exit((folder / "log").read_text()[-2000:])
    seconds = {"seconds": time.monotonic() - start, "processor_seconds": times.user + times.system}
    megabytes = {"private_mb": private / 1e6, "resident_mb": resident / 1e6}
    return {name: round(value, 1) for name, value in (seconds | megabytes).items()}


def table(found, names, rows):
    """Private megabytes of each command by number of rows, as Markdown."""
    lines = [["command", *(f"{count:,} rows" for count in rows)], ["---", *["---:"] * len(rows)]]
    lines += [[name, *(f"{found[name, count]['private_mb']:.0f} MB" for count in rows)] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(found, names, rows, path):
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name in names:
        axes.plot(rows, [found[name, count]["private_mb"] for count in rows], marker="o", label=name)
    axes.set(xlabel="rows", ylabel="peak private memory, MB", xlim=0, ylim=0)
    axes.set_xticks(rows, [f"{count:,}" for count in rows])
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
