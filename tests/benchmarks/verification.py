"""What it costs to compare shards with their recorded digests before they are used.

    python -m tests.benchmarks.verification --rows 1000000 -o FOLDER

Writes scored rows by hand into FOLDER and runs each command with and without ``--no-verify``, by turns.
Nothing is remembered of earlier runs, so that every shard is read in full. Prints medians in seconds of processor time,
in which reading a file from the page cache counts but waiting for a disk does not.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
from datasets import Dataset

from larf_curate.columns import scores_digest
from larf_curate.files import sha256
from larf_curate.manifests import VERSION
from larf_curate.records import write_sealed
from tests.fixtures.scored_folder import PROFILE

SHARD_ROWS = 50_000
WORDS = ["bread", "flour", "water", "yeast", "oven", "minutes", "mix", "well", "then", "bake", "until", "golden"]
COMMANDS = {
    "select": "select scored --top-ratio 0.01 -o selection",
    "report": "report scored -o report.html",
    "publish": "publish selection --to ./published",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_rows(arguments.output / "scored", arguments.rows)
    print(f"{arguments.rows:,} rows\n\n| command | verified | --no-verify | difference |\n| --- | ---: | ---: | ---: |")
    for name, command in COMMANDS.items():
        seconds = {option: [] for option in ("", " --no-verify")}
        for _ in range(arguments.repeats):
            for option, times in seconds.items():
                times.append(run(command + option, arguments.output))
        verified, plain = (median(times) for times in seconds.values())
        print(f"| `{name}` | {verified:.1f} | {plain:.1f} | {verified / plain - 1:+.1%} |", flush=True)


def write_rows(folder: Path, count: int) -> None:
    """Rows of some 60 words with a score and an axis each, in shards with their digests, as ``score`` writes them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rng, shards, scores = np.random.default_rng(0), [], []
    for start in range(0, count, SHARD_ROWS):
        size = min(SHARD_ROWS, count - start)
        words = rng.choice(WORDS, size=(size, 60))
        drawn = rng.normal(size=size).astype(np.float32)
        rows = {
            "instruction": [f"{start + i}: {' '.join(line[:15])}" for i, line in enumerate(words)],
            "output": [" ".join(line[15:]) for line in words],
            "larf_score": drawn,
            "larf_status": ["ok"] * size,
            "larf_signals": [{"harmful": float(value)} for value in drawn],
        }
        path = folder / f"part-{start // SHARD_ROWS:05d}.parquet"
        dataset = Dataset.from_dict(rows)
        dataset.to_parquet(path)
        scores.append(dataset.with_format("arrow")[:]["larf_score"].cast("float32"))
        shards.append({"file": path.name, "rows": size, "sha256": sha256(path)})
    manifest = {"kind": "scored", "version": VERSION, "package": "larf-curate 0.1.0", "source": {}, "profile": PROFILE}
    manifest |= {"signals": ["larf"], "rows": count, "status": {"ok": count}, "shards": shards}
    write_sealed(folder / "manifest.json", manifest | {"scores": scores_digest(whole(scores))})


def whole(scores):
    """One column of those of all shards."""
    return pa.chunked_array([chunk for column in scores for chunk in column.chunks], pa.float32())


def run(command: str, folder: Path) -> float:
    """Seconds of processor time of a command."""
    home = folder / "home"
    shutil.rmtree(home / "verified", ignore_errors=True)
    shutil.rmtree(folder / "published", ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "larf_curate", *command.split()],
        cwd=folder,
        env={**os.environ, "LARF_CURATE_HOME": str(home)},
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
