"""Results are replaced: what an earlier run wrote is removed, and nothing else."""

from pathlib import Path

import pytest
from datasets import Dataset

from larf_curate.data import tables
from larf_curate.data.replacement import UNFINISHED, replaced_results
from larf_curate.data.tables import part_files, read_parquet, write_parts
from larf_curate.errors import InputError
from larf_curate.manifests import DECISIONS, SELECTION
from larf_curate.records import write_sealed

SHARD = "part-00000-of-00001.parquet"


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 2)


def write(folder: Path, rows: int, *, kind=SELECTION, killed: bool = False) -> None:
    parts = {name: Dataset.from_dict({"a": list(range(rows))}) for name in ("kept", "flagged")}
    with replaced_results(folder, kind, part_files(parts)):
        shards = write_parts(parts, folder)
        if killed:
            raise KeyboardInterrupt
        write_sealed(folder / kind.file, {"kind": kind.name, "shards": shards})


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_fewer_shards_replace_more(tmp_path):
    write(tmp_path, 5)
    write(tmp_path, 2)
    assert names(tmp_path) == {"selection.json", f"kept/{SHARD}", f"flagged/{SHARD}"}
    assert read_parquet(tmp_path / "kept")["a"][:] == [0, 1]


def test_what_a_killed_run_has_left_is_replaced(tmp_path):
    write(tmp_path, 7)
    for rows in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, rows, killed=True)
        assert "selection.json" not in names(tmp_path)
    write(tmp_path, 1)
    assert names(tmp_path) == {"selection.json", f"kept/{SHARD}", f"flagged/{SHARD}"}


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("mine", ["kept/part-mine.parquet", "flagged/x.parquet", "kept/part-00007-of-00008.parquet"])
def test_parquet_files_of_others_are_refused_before_anything_is_removed(tmp_path, again, mine):
    if again:
        write(tmp_path, 5)
    (tmp_path / mine).parent.mkdir(exist_ok=True)
    (tmp_path / mine).write_text("mine")
    before = names(tmp_path)
    with pytest.raises(InputError, match=f"{mine} is not of a selection .*: move it, or write to another folder"):
        write(tmp_path, 1)
    assert names(tmp_path) == before
    assert (tmp_path / mine).read_text() == "mine"


def test_hidden_and_other_files_are_left_alone(tmp_path):
    write(tmp_path, 5)
    mine = {"kept/.x.tmp", "kept/.x.parquet", "kept/notes.txt", "x.parquet", ".unfinished.mine.json"}
    for name in mine:
        (tmp_path / name).write_text("mine")
    write(tmp_path, 1)
    assert names(tmp_path) == {"selection.json", f"kept/{SHARD}", f"flagged/{SHARD}", *mine}


def test_links_to_other_folders_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / SHARD).write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").symlink_to("../mine")
    with pytest.raises(InputError, match="out/kept is a link, wanted a folder: remove the link"):
        write(tmp_path / "out", 1)
    assert (tmp_path / "mine" / SHARD).read_text() == "mine"
    assert names(tmp_path / "out") == set()


@pytest.mark.parametrize("name", ["../mine.parquet", "a/b/mine.parquet", "mine.txt", "/mine.parquet", 7])
def test_a_forged_list_removes_nothing_else(tmp_path, name):
    folder = tmp_path / "out"
    for path in ("mine.parquet", "out/a/b/mine.parquet", "out/mine.txt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("mine")
    write_sealed(folder / SELECTION.file, {"kind": "selection", "shards": [{"file": name}]})
    write_sealed(folder / UNFINISHED, {"kind": "unfinished", "files": [str(name)]})
    write(folder, 1)
    assert names(tmp_path) >= {"mine.parquet", "out/a/b/mine.parquet", "out/mine.txt"}


def test_results_of_another_kind_are_refused(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(InputError, match="holds a selection, which would be overwritten"):
        write(tmp_path, 1, kind=DECISIONS)
