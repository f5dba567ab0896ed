"""Peak memory of ``select`` and ``report`` on rows with wide states, by the real commands.

    python -m tests.benchmarks.select_memory --rows 100000 --width 4096 -o FOLDER

The scored folder has random states and scores, in shards of the size that ``score`` writes. Memory is that of the
process: private pages, and all resident ones, with those of mapped files, which the system takes back when needed.

Prints one line of JSON per command.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, List, Value

from larf_curate.columns import SCORE, scores_digest
from larf_curate.data.sources import ROWS_PER_PIECE
from larf_curate.files import sha256
from larf_curate.manifests import VERSION
from larf_curate.records import write_sealed
from larf_curate.scoring.shard import BATCH_ROWS
from tests.fixtures.scored_folder import PROFILE

PERIOD = 0.02
"""Seconds between two looks at the process."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    scored, selection = arguments.output / "scored", arguments.output / "selection"
    if not scored.exists():
        write_folder(scored, arguments.rows, arguments.width)
    shutil.rmtree(selection, ignore_errors=True)
    report = arguments.output / "report.html"
    for command in (["select", scored, "--top-ratio", "0.05", "-o", selection], ["report", scored, "-o", report]):
        print(json.dumps({"command": command[0], **measured(command, arguments.output)}), flush=True)


def write_folder(folder, rows, width):
    """A scored folder of random states."""
    folder.mkdir(parents=True)
    features = Features(
        {
            "question": Value("string"),
            "answer": Value("string"),
            "larf_score": Value("float32"),
            "larf_signals": {"larf": Value("float32")},
            "larf_status": Value("string"),
            "larf_state": List(Value("float16"), length=width),
        }
    )
    rng, shards = np.random.default_rng(0), []
    for start in range(0, rows, ROWS_PER_PIECE):
        path = folder / f"part-{len(shards):05d}.parquet"
        with pq.ParquetWriter(path, features.arrow_schema) as writer:
            for first in range(start, min(start + ROWS_PER_PIECE, rows), BATCH_ROWS):
                writer.write_table(batch(rng, first, min(BATCH_ROWS, rows - first), width, features.arrow_schema))
        shards.append({"file": path.name, "rows": pq.read_metadata(path).num_rows, "sha256": sha256(path)})
    scores = pa.chunked_array(
        [part for shard in shards for part in pq.read_table(folder / shard["file"], columns=[SCORE])[0].chunks]
    )
    manifest = {"kind": "scored", "version": VERSION, "package": "larf-curate 0.1.0", "source": {}, "profile": PROFILE}
    manifest |= {"signals": ["larf"], "rows": rows, "status": {"ok": rows}, "scores": scores_digest(scores)}
    write_sealed(folder / "manifest.json", manifest | {"shards": shards})


def batch(rng, first, count, width, schema):
    scores = rng.normal(size=count).astype(np.float32)
    states = rng.normal(size=count * width).astype(np.float16)
    columns = {
        "question": [f"Question {first + i}?" for i in range(count)],
        "answer": [f"Answer {first + i}. " * 20 for i in range(count)],
        "larf_score": scores,
        "larf_signals": [{"larf": float(score)} for score in scores],
        "larf_status": ["ok"] * count,
        "larf_state": pa.FixedSizeListArray.from_arrays(pa.array(states), width),
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)


def measured(command, folder):
    """Seconds and peak megabytes of a command."""
    start, private, resident = time.monotonic(), 0, 0
    with (folder / "log").open("w") as log:
        process = psutil.Popen([sys.executable, "-m", "larf_curate", *map(str, command)], stdout=log, stderr=log)
        while process.poll() is None:
            info = process.memory_info()
            private, resident = max(private, info.rss - info.shared), max(resident, info.rss)
            time.sleep(PERIOD)
    if process.returncode:
        sys.exit((folder / "log").read_text()[-2000:])
    seconds = time.monotonic() - start
    return {"seconds": round(seconds, 1), "private_mb": round(private / 1e6), "resident_mb": round(resident / 1e6)}


if __name__ == "__main__":
    main()
