"""Every command that writes is killed at random moments: run again, it gives what an undisturbed run gives.

``LARF_CURATE_FAULTS=full pytest tests/test_kills.py -s`` does the full count and prints it.
"""

import json
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from tests.fixtures.fresh_process import start as start_process

FULL = os.environ.get("LARF_CURATE_FAULTS") == "full"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(0 if FULL else 300)]
KILLS = 20 if FULL else 1
"""Kills of each command."""
ROWS = [{"instruction": f"Say {i}.", "output": f"Here is {'it ' * (i % 9)}."} for i in range(60)]
NEUTRAL = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(12)]
REFERENCES = {
    "unsafe": [{"prompt": f"Hurt {i}", "response": f"Sure, {i}."} for i in range(6)],
    "safe": [{"prompt": f"Hurt {i}", "response": f"I cannot help with {i}."} for i in range(6)],
    "neutral": NEUTRAL,
}
TIMES = re.compile(r'"[a-z_]*(seconds|runtime|per_second|peak_)[a-z_]*": [^,\n]*')
DIGEST = re.compile(r'"digest": [^,\n]*')
PROFILE = "profile MODEL --layers 1,3 --dtype float32 --unsafe unsafe.jsonl --safe safe.jsonl --neutral neutral.jsonl"
PROMPTS = "--harmful harmful.json --safe harmful.json --max-new-tokens 4"
QUICK = "--epochs 2 --batch-size 4 --micro-batch-size 4 --max-length 96"
INPUTS = {
    "profile": f"{PROFILE} -o profile",
    "scored": "score rows --profile profile -o scored --device cpu",
    "selection": "select scored --top-k 7 -o selection",
}
"""Commands that write what other commands read, in order."""
COMMANDS = {
    "profile": f"{PROFILE} -o OUT/profile",
    "layers": "layers MODEL -o OUT/layers --method sweep --prompts harmful.json --keywords larf",
    "score": "score rows --profile profile -o OUT/scored --device cpu --resume",
    "score --num-proc 2": "score rows --profile profile -o OUT/scored --device cpu --resume --num-proc 2",
    "score --shard": "score rows --profile profile -o OUT/scored --device cpu --shard 0/1",
    "select": "select scored --top-ratio 0.1 -o OUT/selection",
    "report": "report selection -o OUT/report.html",
    "publish": "publish selection --to OUT/published",
    "train": f"train rows --model MODEL -o OUT/tuned {QUICK}",
    "evaluate": f"evaluate MODEL -o OUT/evaluation {PROMPTS}",
    "verify": f"verify scored --model MODEL -o OUT/runs --arm top --arm random --seeds 1 --rows 8 {QUICK} {PROMPTS}",
}


FINISH = {"score --shard": COMMANDS["score"]}
"""What is run after a command to complete its results."""
QUICKEST = ("profile", "score", "score --shard", "select", "report", "publish")
"""Commands that are killed in the default run."""


def run_command(folder: Path, command: str) -> None:
    """What runs in a process of its own."""
    from larf_curate.cli import main

    os.chdir(folder)
    os.environ["LARF_CURATE_HOME"] = str(folder / "home")
    main(command.split(), prog_name="larf-curate")


def run(command: str, folder: Path, *, kill_after: float | None = None) -> float:
    """Run a command in a folder, and kill it after a time in seconds; returns the seconds that it took."""
    log, began = folder / "log", time.monotonic()
    process = start_process(run_command, folder, command, log=log)
    process.join(kill_after)
    if kill_after is not None:
        process.kill()
        process.join()
    else:
        assert process.exitcode == command.startswith("layers"), f"{command}: {log.read_text()[-2000:]}"
    return time.monotonic() - began


def run_whole(name: str, out: Path, inputs: Path) -> float:
    """Run a command, and what completes its results; returns the seconds that the command took."""
    seconds = run(COMMANDS[name].replace("OUT", str(out)), inputs)
    if name in FINISH:
        run(FINISH[name].replace("OUT", str(out)), inputs)
    return seconds


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_llama):
    """A folder with a model's profile, scored rows and a selection of them."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "MODEL").symlink_to(tiny_llama)
    (folder / "rows").mkdir()
    for name, rows in {**REFERENCES, "rows/a": ROWS[:25], "rows/b": ROWS[25:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "harmful.json").write_text(json.dumps([row["prompt"] for row in REFERENCES["unsafe"]]))
    for command in INPUTS.values():
        run(command, folder)
    return folder


def read(path: Path) -> object:
    """The content of a file as values, without times."""
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    if path.suffix == ".safetensors":
        return {name: values.tolist() for name, values in load_file(path).items()}
    if path.suffix in (".png", ".bin", ".pt", ".pth"):
        return None
    text = path.read_text()
    timeless = TIMES.sub("", text)
    return timeless if timeless == text else DIGEST.sub("", timeless)  # the digest of a record includes its times


def contents(folder: Path) -> dict[str, object]:
    """Values by file; the hidden file that a killed writer of a page or plot leaves is nobody's result."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".tmp"]
    return {str(path.relative_to(folder)): read(path) for path in files}


@pytest.mark.parametrize("name", COMMANDS if FULL else QUICKEST)
def test_a_killed_command_completes_when_it_is_run_again(name, inputs, tmp_path):
    command, chance = COMMANDS[name], random.Random(name)
    seconds = run_whole(name, tmp_path / "whole", inputs)
    whole = contents(tmp_path / "whole")
    assert whole
    for number in range(KILLS):
        out = tmp_path / f"out{number}"
        run(command.replace("OUT", str(out)), inputs, kill_after=chance.random() * seconds)
        run_whole(name, out, inputs)
        np.testing.assert_equal(contents(out), whole)
    print(f"{name}: {KILLS} kills, {KILLS} completed with the same values")  # noqa: T201
