"""What the engines of ``score`` cost, and what they lose when processes are killed.

    python -m tests.benchmarks.engines --rows 1000000 -o FOLDER [--kill-every 20]

Scores the same rows with a tiny model by two worker processes (``--num-proc 2``), by two actors (``--engine ray
--actors 2``) and by two processes at once of ``--shard I/16``, each alone, and compares the files. With
``--kill-every`` an actor of the Ray run, or a process of the shares, is killed at intervals of so many seconds, and in
another Ray run the driver twice. Prints seconds, rows per second and the cost against worker processes; checks that no
row is missing or twice, and that no shard is written again.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from larf_curate.data.sources import ROWS_PER_PIECE
from tests.fixtures.tiny import byte_model, byte_tokenizer, save

FILE_ROWS = 50_000
SHARES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kill-every", type=float, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"LARF_CURATE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    write_inputs(folder, arguments.rows)
    engines = {"--num-proc 2": workers, "--engine ray --actors 2": ray, f"--shard I/{SHARES}": shares}
    if arguments.kill_every:
        engines["--engine ray, driver killed"] = ray_again
    print("| engine | seconds | rows/s | against workers | kills | files |\n| --- | ---: | ---: | ---: | ---: | --- |")
    times: dict[str, float] = {}
    wanted = None
    for name, run in engines.items():
        shutil.rmtree(folder / "out", ignore_errors=True)
        began = time.monotonic()
        kills = run(folder, arguments.kill_every)
        times[name] = time.monotonic() - began
        found = digests(folder / "out")
        wanted = wanted or found
        same = "identical" if found == wanted else f"{sum(found[n] != wanted.get(n) for n in found)} differ"
        cost = times[name] / times["--num-proc 2"] - 1
        rows = count_rows(folder / "out")
        assert rows == arguments.rows, (rows, arguments.rows)
        print(
            f"| `{name}` | {times[name]:.0f} | {rows / times[name]:,.0f} | {cost:+.0%} | {kills} | {same} |", flush=True
        )


def write_inputs(folder: Path, count: int) -> None:
    """A tiny model, its profile, and rows of some ten words in files."""
    save(byte_model().eval(), byte_tokenizer(), folder / "model")
    larf_curate(folder, "profile model --layers 1 --dtype float32 --signal larf --device cpu -o profile")
    shutil.rmtree(folder / "rows", ignore_errors=True)
    (folder / "rows").mkdir()
    for start in range(0, count, FILE_ROWS):
        with (folder / f"rows/part-{start // FILE_ROWS:03d}.jsonl").open("w") as stream:
            for i in range(start, min(start + FILE_ROWS, count)):
                row = {"instruction": f"Say {i}.", "output": f"It is {i}{' and' * (i % 3)}."}
                stream.write(json.dumps(row) + "\n")


def larf_curate(folder: Path, command: str) -> None:
    with (folder / "log").open("a") as log:
        subprocess.run([sys.executable, "-m", "larf_curate", *command.split()], cwd=folder, check=True, stderr=log,
                       stdout=log)  # fmt: skip


def start(folder: Path, command: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("a") as log:
        return subprocess.Popen([sys.executable, "-m", "larf_curate", *command.split()], cwd=folder, stderr=log,
                                stdout=log)  # fmt: skip


SCORE = "score rows --profile profile --device cpu -o out"


def workers(folder: Path, _: float) -> int:
    larf_curate(folder, f"{SCORE} --num-proc 2")
    return 0


def ray(folder: Path, every: float) -> int:
    """One run on two actors, of which one is killed at intervals; returns the number of kills."""
    process, kills, last = start(folder, f"{SCORE} --engine ray --actors 2"), 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        actors = list(actors_of(process.pid))
        if every and time.monotonic() - last > every and actors:
            random.choice(actors).kill()
            kills, last = kills + 1, time.monotonic()
    assert process.returncode == 0, process.returncode
    return kills


def ray_again(folder: Path, _: float) -> int:
    """A run on Ray whose driver is killed when a third, and when two thirds, of the shards are complete."""
    wanted, complete = len(list((folder / "rows").iterdir())) * FILE_ROWS // ROWS_PER_PIECE, {}
    for third in (1, 2):
        process = start(folder, f"{SCORE} --engine ray --actors 2{' --resume' if complete else ''}")
        while len(complete := changes(folder / "out")) < wanted * third / 3:
            assert process.poll() is None, process.returncode
            time.sleep(0.2)
        process.kill()
        process.wait()
    larf_curate(folder, f"{SCORE} --engine ray --actors 2 --resume")
    again = [name for name, changed in complete.items() if changes(folder / "out")[name] != changed]
    assert not again, again
    return 2


def changes(folder: Path) -> dict[str, int]:
    """Time of the last change of each shard."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}


def actors_of(parent: int) -> Iterator[psutil.Process]:
    for process in psutil.Process(parent).children(recursive=True):
        try:
            if "ray::_Actor" in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


def shares(folder: Path, every: float) -> int:
    """Sixteen shares, two at a time, of which one is killed at intervals and started again; returns the kills."""
    left, running, kills, last = list(range(SHARES)), {}, 0, time.monotonic()
    while left or running:
        while left and len(running) < 2:
            share = left.pop(0)
            running[share] = start(folder, f"{SCORE} --shard {share}/{SHARES}")
        time.sleep(0.1)
        if every and time.monotonic() - last > every:
            share = random.choice(list(running))
            running[share].kill()
            kills, last = kills + 1, time.monotonic()
        for share, process in list(running.items()):
            if process.poll() is not None:
                del running[share]
                left += [share] if process.returncode else []
    larf_curate(folder, f"{SCORE} --resume")
    return kills


def count_rows(folder: Path) -> int:
    """Number of distinct rows, by their text, of which none must be there twice."""
    texts = [text for path in folder.glob("*.parquet") for text in pq.read_table(path)["instruction"].to_pylist()]
    assert len(set(texts)) == len(texts)
    return len(texts)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}


if __name__ == "__main__":
    main()
