"""Result folders that are given as datasets: whole and unchanged, or refused."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from larf_curate.data.prompts import load_table
from larf_curate.data.replacement import UNFINISHED
from larf_curate.data.sources import open_source
from larf_curate.errors import InputError
from larf_curate.manifests import PLAN
from larf_curate.records import write_sealed
from larf_curate.verification import without_verification
from tests.fixtures.decisions_folder import write_decisions
from tests.fixtures.scored_folder import write_scored

ROWS = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(4)]
pytestmark = pytest.mark.usefixtures("own_caches")


def other_rows(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, table.schema.field(1), pa.nulls(len(table), table.schema.field(1).type)), path)


def fewer_rows(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


def twice(path: Path) -> None:
    shutil.copy(path, path.with_name("part-99999.parquet"))


DAMAGES = (other_rows, fewer_rows, twice, Path.unlink)


@pytest.fixture
def scored(tmp_path):
    return write_scored(tmp_path / "scored", Dataset.from_list(ROWS), pieces=2)


@pytest.fixture
def decisions(tmp_path):
    return write_decisions(tmp_path / "decisions")


def count(name) -> int:
    return open_source(str(name)).rows


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_changed_scored_folder_is_no_dataset_unless_its_files_are_given(scored, damage):
    assert count(scored) == len(ROWS)
    damage(scored / "part-00000.parquet")
    with pytest.raises(InputError, match=r"score again with --resume, or give its files as .*/\*\.parquet"):
        count(scored)
    assert count(scored / "*.parquet")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("part", ["kept", "removed"])
def test_a_changed_part_of_decisions_is_no_dataset(decisions, part, damage, monkeypatch):
    folder = decisions / part
    rows = count(folder)
    monkeypatch.chdir(folder)
    assert count(".") == rows
    damage(min(folder.glob("*.parquet")))
    for name in (folder, "."):
        with pytest.raises(InputError, match="write it again with larf-curate review pull"):
            count(name)


def test_only_the_part_that_is_read_is_checked_and_nothing_without_verification(decisions):
    rows = count(decisions / "kept")
    other_rows(min((decisions / "removed").glob("*.parquet")))
    assert count(decisions / "kept") == len(load_table(decisions)) == rows
    fewer_rows(min((decisions / "kept").glob("*.parquet")))
    with pytest.raises(InputError, match="kept/.* was changed after it was written"):
        load_table(decisions)
    with without_verification():
        assert len(load_table(decisions)) == rows - 1


def test_an_unfinished_folder_is_no_dataset(scored, decisions):
    write_sealed(scored / PLAN, {"source": {}, "scorer": {}, "rows": 9})
    assert count(scored) == len(ROWS)
    (scored / "manifest.json").unlink()
    with pytest.raises(InputError, match="has an unfinished run of score: finish it with --resume first"):
        count(scored)
    manifest = decisions / "decisions.json"
    content = manifest.read_text()
    manifest.write_text(content[:-9])
    with pytest.raises(InputError, match="decisions.json is not valid JSON"):
        load_table(decisions)
    manifest.rename(decisions / UNFINISHED)
    with pytest.raises(InputError, match="was not written completely"):
        load_table(decisions)


def test_a_damaged_manifest_beside_a_plan_is_not_taken_for_somebody_elses(scored):
    (scored / "manifest.json").write_text("{")
    assert count(scored) == len(ROWS)
    write_sealed(scored / PLAN, {"source": {}, "scorer": {}, "rows": len(ROWS)})
    with pytest.raises(InputError, match="manifest.json is not valid JSON"):
        count(scored)
