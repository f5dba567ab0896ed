"""Damaged folders and tampered records: each is refused in one line, and none is used.

``LARF_CURATE_FAULTS=full pytest tests/test_faults.py -s`` does the full count and prints it.
"""

import copy
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from larf_curate.errors import LarfCurateError
from larf_curate.publish.kept_rows import read_kept_rows
from larf_curate.review.decisions.outcome import Decisions
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import Selection
from tests.fixtures.decisions_folder import write_decisions, write_selection
from tests.fixtures.scored_folder import write_scored

FULL = os.environ.get("LARF_CURATE_FAULTS") == "full"
RECORDS, FOLDERS = (1700, 350) if FULL else (60, 24)
"""Tampered records and damaged folders of each kind."""
ROWS = [{"question": f"Q{i}", "larf_score": i / 8, "larf_status": "ok"} for i in range(40)]


def scored(folder: Path) -> Path:
    return write_scored(folder, Dataset.from_list(ROWS), source={"dataset": "d"})


KINDS = {
    "manifest.json": (scored, Scored.load),
    "selection.json": (write_selection, Selection.load),
    "decisions.json": (write_decisions, Decisions.load),
}
VALUES = [None, True, 0, -1, 10**30, 1.5, "", "x", [], {}, [[]], {"a": 1}, float("nan"), float("inf"), "../../x"]


def places(value, path=()):
    """Paths of all values in a record."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def tampered(record: dict, rng: random.Random) -> str:
    """The text of a record with one fault, which may not give the same record again."""
    text, changed = json.dumps(record), copy.deepcopy(record)
    *parents, last = rng.choice(list(places(record))[1:])
    holder = changed
    for key in parents:
        holder = holder[key]
    fault = rng.randrange(5)
    if fault == 0:
        del holder[last]
    elif fault == 1:
        return text[: rng.randrange(len(text) - 1)]
    elif fault == 2:
        return rng.choice(["[" * 20_000, '{"a":' * 20_000, "null", "[]", "\ufeff" + text, "9" * 5000])
    elif fault == 3 and isinstance(holder, dict):
        holder[f"{last}x"] = holder[last]
    else:
        holder[last] = rng.choice(
            [value for value in VALUES if value != holder[last] or type(value) is not type(holder[last])]
        )
    return json.dumps(changed)


@pytest.mark.parametrize("name", KINDS)
def test_a_tampered_record_is_refused_in_one_line(tmp_path, name):
    write, load = KINDS[name]
    folder, rng = write(tmp_path / "x"), random.Random(0)
    record = json.loads((folder / name).read_text())
    load(folder)
    for _ in range(RECORDS):
        text = tampered(record, rng)
        (folder / name).write_text(text)
        with pytest.raises(LarfCurateError) as error:
            load(folder)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500, text
    print(f"{name}: {RECORDS} tampered records, {RECORDS} refused, 0 used, 0 tracebacks")  # noqa: T201


def damage(folder: Path, other: Path, fault: int, rng: random.Random) -> None:
    """Damage a shard of a folder; ``other`` is a folder of another run."""
    shard = rng.choice(sorted(folder.rglob("*.parquet")))
    data = bytearray(shard.read_bytes())
    if fault == 0:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        times = shard.stat()
        shard.write_bytes(data)
        os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk error leaves it
    elif fault == 1:
        shard.write_bytes(data[: rng.randrange(len(data))])
    elif fault == 2:
        shard.unlink()
    elif fault == 3:
        shutil.copy(other / shard.relative_to(folder), shard)
        if shard.read_bytes() == data:  # both runs have the same rows in this shard
            shard.unlink()
    elif fault == 4:
        shutil.copy(shard, shard.with_name("part-99999.parquet"))
    else:
        shutil.move(shard, folder.parent / "outside.parquet")
        shard.symlink_to(folder.parent / "outside.parquet")


@pytest.mark.parametrize("load", [*(kind[1] for kind in KINDS.values()), read_kept_rows])
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, load):
    write = {Scored.load: scored, Selection.load: write_selection}.get(load, write_decisions)
    whole, rng = write(tmp_path / "whole"), random.Random(1)
    other = scored_elsewhere(tmp_path) if write is scored else write(tmp_path / "other", rows=13)
    load(whole)
    for index in range(FOLDERS):
        folder = Path(shutil.copytree(whole, tmp_path / f"x{index}"))
        damage(folder, other, index % 6, rng)
        with pytest.raises(LarfCurateError) as error:
            load(folder)
        assert "\n" not in str(error.value)
        shutil.rmtree(folder)
    print(f"{load.__qualname__}: {FOLDERS} damaged folders, {FOLDERS} refused, 0 used")  # noqa: T201


def scored_elsewhere(tmp_path: Path) -> Path:
    return write_scored(tmp_path / "other", Dataset.from_list(ROWS[::-1]), source={"dataset": "e"})
