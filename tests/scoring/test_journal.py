import json

import pytest

from larf_curate.errors import InputError
from larf_curate.files import sha256
from larf_curate.manifests import PLAN
from larf_curate.records import write_sealed
from larf_curate.scoring.journal import (
    JOURNAL,
    crash_noted,
    has_crashed,
    note_crash,
    read_journal,
    record_shard,
    remove_journal,
)


def begin(folder, rows=8):
    write_sealed(folder / PLAN, {"source": {"dataset": "d"}, "scorer": {}, "rows": rows})
    return folder


@pytest.fixture
def begun(tmp_path):
    begin(tmp_path)
    for index in range(2):
        record(tmp_path, index)
    return tmp_path


def record(folder, index, **changes):
    shard = {"file": f"part-{index}.parquet", "rows": 4 + index, "bytes": 9, "sha256": f"{index}" * 64}
    record_shard(folder, shard | changes, plan=sha256(folder / PLAN))


def entry(folder, index=0):
    name = f"part-{index}.parquet"
    return next(path for path in (folder / JOURNAL).iterdir() if json.loads(path.read_text())["shard"]["file"] == name)


def test_recorded_shards_are_read_by_name(begun):
    assert read_journal(begun) == {
        "part-0.parquet": [{"file": "part-0.parquet", "rows": 4, "bytes": 9, "sha256": "0" * 64}],
        "part-1.parquet": [{"file": "part-1.parquet", "rows": 5, "bytes": 9, "sha256": "1" * 64}],
    }


def test_a_folder_without_a_journal_has_no_recorded_shard(tmp_path):
    assert read_journal(begin(tmp_path)) == {}


@pytest.mark.parametrize("damage", ["cut", "digest of the shard", "digest of the plan", "more", "no object", "no text"])
def test_a_damaged_entry_counts_as_none_and_the_others_stay(begun, damage):
    path = entry(begun)
    record = json.loads(path.read_text())
    path.write_bytes(
        {
            "cut": path.read_bytes()[:-9],
            "digest of the shard": json.dumps(record | {"shard": record["shard"] | {"sha256": "f" * 64}}).encode(),
            "digest of the plan": json.dumps(record | {"plan": "f" * 64}).encode(),
            "more": json.dumps(record | {"more": 1}).encode(),
            "no object": b"[]",
            "no text": b"\xff\xfe",
        }[damage]
    )
    assert read_journal(begun).keys() == {"part-1.parquet"}


def test_entries_of_another_plan_count_as_none(begun):
    begin(begun, rows=9)
    assert read_journal(begun) == {}
    record(begun, 1)
    assert read_journal(begun).keys() == {"part-1.parquet"}


def test_records_of_other_content_are_kept_side_by_side_and_the_same_one_once(begun):
    record(begun, 1, sha256="f" * 64)
    record(begun, 1, sha256="f" * 64)
    assert sorted(shard["sha256"] for shard in read_journal(begun)["part-1.parquet"]) == ["1" * 64, "f" * 64]


def test_a_damaged_entry_is_written_again(begun):
    entry(begun).write_text(json.dumps(json.loads(entry(begun).read_text()) | {"plan": ""}))
    record(begun, 0)
    assert read_journal(begun).keys() == {"part-0.parquet", "part-1.parquet"}


def test_an_entry_that_has_the_name_of_another_does_not_keep_that_one_from_being_written(begun):
    wanted = read_journal(begun)
    entry(begun, 1).write_bytes(entry(begun, 0).read_bytes())
    record(begun, 1)
    assert read_journal(begun) == wanted


def test_an_entry_of_a_killed_process_counts_as_none(begun):
    hidden = entry(begun, 1)
    entry(begun).rename(entry(begun).with_name(".part-0.parquet.json.ab12.tmp"))
    hidden.rename(hidden.with_name(f".{hidden.name}"))
    assert read_journal(begun) == {}


def test_an_entry_under_the_name_of_another_shard_is_of_the_shard_that_it_names(begun):
    entry(begun, 1).write_bytes(entry(begun, 0).read_bytes())
    assert read_journal(begun).keys() == {"part-0.parquet"}


def test_the_journal_of_a_finished_run_is_removed(begun):
    remove_journal(begun)
    assert not (begun / JOURNAL).exists()
    assert (begun / PLAN).exists()
    remove_journal(begun)


def test_the_plan_in_an_entry_is_the_digest_of_its_file(begun):
    assert json.loads(entry(begun).read_text())["plan"] == sha256(begun / PLAN)


def test_a_journal_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / PLAN).write_text("{}")
    (folder / JOURNAL).symlink_to(tmp_path / "elsewhere")
    for action in (
        lambda: record(folder, 0),
        lambda: read_journal(folder),
    ):
        with pytest.raises(InputError, match="is a link"):
            action()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_crash_is_noted_until_the_run_finishes_and_any_other_end_is_none(begun):
    def interrupted():
        with crash_noted(begun, "0a0a0a0a"):
            assert has_crashed(begun)  # as a later process would see it if this one died here
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not has_crashed(begun)
    note_crash(begun, "0b0b0b0b")
    assert has_crashed(begun)
    assert len(read_journal(begun)) == 2
    remove_journal(begun)
    assert not has_crashed(begun)
