"""Several processes that score into one folder: equal to one process, whatever happens to any of them."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from larf_curate.data import sources
from larf_curate.data.sources import open_source
from larf_curate.errors import InputError, ScoringError
from larf_curate.manifests import PLAN
from larf_curate.scoring import plan as plans
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.journal import JOURNAL, read_journal
from larf_curate.scoring.run import score_share, score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.shard import ShardScorer
from tests.fixtures.deadly import DeadlyGuard
from tests.fixtures.fresh_process import CONTEXT, start
from tests.fixtures.pieces import PER_PIECE, ROWS, small_profile, ten_pieces

FILES = 10
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def profile(tiny_llama):
    return small_profile(tiny_llama)


@pytest.fixture
def scorer(profile):
    return LarfScorer(profile, keep_states=True, device="cpu")


@pytest.fixture
def data(tmp_path, monkeypatch):
    return ten_pieces(tmp_path, monkeypatch)


def share(data, scorer, out, index, count):
    return score_share(open_source(str(data)), scorer, out, index=index, count=count)


def share_in_process(data, scorer, out, index, count):
    """What runs in a process of its own."""
    sources.ROWS_PER_PIECE = PER_PIECE
    share(data, scorer, out, index, count)


def overtaken(monkeypatch, run):
    """Let another run take place each time that a process has written a shard, before the shard gets its name."""
    write = ShardScorer._write

    def write_late(self, *arguments):
        write(self, *arguments)
        with monkeypatch.context() as patched:
            patched.setattr(ShardScorer, "_write", write)
            run()

    monkeypatch.setattr(ShardScorer, "_write", write_late)


def check_equal(out: Path, plain: Path) -> None:
    """Both folders have the same files, with the same values, and nothing else."""
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in plain.iterdir())
    assert (out / PLAN).read_bytes() == (plain / PLAN).read_bytes()
    for path in sorted(plain.glob("*.parquet")):
        table, wanted = pq.read_table(out / path.name), pq.read_table(path)
        assert table.schema == wanted.schema
        for name in wanted.column_names:
            np.testing.assert_equal(table[name].to_pylist(), wanted[name].to_pylist())
    manifest, wanted = (json.loads((folder / "manifest.json").read_text()) for folder in (out, plain))
    assert {**manifest, "shards": [], "digest": ""} == {**wanted, "shards": [], "digest": ""}
    assert [shard["file"] for shard in manifest["shards"]] == [shard["file"] for shard in wanted["shards"]]
    assert Scored.load(out, verify=True).rows["question"][:] == [row["question"] for row in ROWS]


@pytest.mark.slow
def test_processes_at_once_of_which_one_is_killed_and_two_have_the_same_number_give_the_plain_run(
    data, scorer, tmp_path
):
    out, log = tmp_path / "out", tmp_path / "log"
    processes = [start(share_in_process, data, scorer, out, index, 3, log=log) for index in (0, 1, 1, 2)]
    end = time.monotonic() + 120
    while not list(out.glob(".*.parquet.*.tmp")):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.002)
    processes[3].kill()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, -9], log.read_text()
    assert not (out / "manifest.json").exists()
    names = [piece.name for piece in open_source(str(data)).pieces]
    there = {path.stem for path in out.glob("*.parquet")}
    assert there >= {name for place, name in enumerate(names) if place % 3 != 2}
    score_source(open_source(str(data)), scorer, out, resume=True)
    score_source(open_source(str(data)), scorer, tmp_path / "plain")
    check_equal(out, tmp_path / "plain")


def share_with_guard(data, scorer, out):
    """What runs in a process of its own, which ends at row 33."""
    sources.ROWS_PER_PIECE = PER_PIECE
    multiprocessing.get_context = lambda _: CONTEXT  # starts sooner than the real one
    guard = DeadlyGuard("answer 33.")
    score_share(open_source(str(data)), scorer, out, index=1, count=2, guard=guard)


@pytest.mark.slow
def test_a_row_that_ends_the_process_is_set_aside_when_the_process_is_started_again(data, scorer, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    for code in (-signal.SIGSEGV, 0):
        process = start(share_with_guard, data, scorer, out, log=log)
        process.join()
        assert process.exitcode == code, log.read_text()
    source = open_source(str(data))
    manifest = score_source(source, scorer, out, resume=True, guard=DeadlyGuard("answer 33."))
    assert manifest["status"] == {"crashed": 1, "ok": len(ROWS) - 1}
    assert Scored.load(out, verify=True).rows["larf_status"][33] == "crashed"


def test_shares_one_after_the_other_are_the_files_of_a_plain_run_whatever_their_number(data, scorer, tmp_path):
    score_source(open_source(str(data)), scorer, tmp_path / "plain")
    for count in (1, 4, 11):  # with eleven, one process has nothing to do
        out = tmp_path / f"of-{count}"
        rows = [share(data, scorer, out, index, count).get("ok", 0) for index in reversed(range(count))]
        assert sum(rows) == len(ROWS)
        assert len(list(out.glob("*.parquet"))) == FILES
        with pytest.raises(InputError, match="not finished: continue with larf-curate score --resume"):
            Scored.load(out)
        times = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
        score_source(open_source(str(data)), scorer, out, resume=True)
        assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == times
        check_equal(out, tmp_path / "plain")


def test_a_share_is_scored_once_and_what_is_missing_of_it_again(data, scorer, tmp_path):
    out = tmp_path / "out"
    assert share(data, scorer, out, 1, 4) == {"ok": 57}
    files = sorted(out.glob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in files]
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:-9])
    assert share(data, scorer, out, 1, 4) == {"ok": 57}
    assert files[0].stat().st_mtime_ns == times[0]
    assert all(len(pq.read_table(path)) == 19 for path in files)
    assert len(files) == 3


@pytest.mark.parametrize(("index", "count"), [(4, 4), (-1, 4), (0, 0)])
def test_a_number_out_of_range_is_refused_before_anything_is_written(data, scorer, tmp_path, index, count):
    with pytest.raises(InputError, match=f"got {index}/{count}: count from 0"):
        share(data, scorer, tmp_path / "out", index, count)
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused_even_before_the_first_shard_is_complete(data, scorer, profile, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / f".{PLAN}.ab12cd34.tmp").write_text("of a process that is writing it")
    plans.join_run(out, {"source": {"dataset": "d"}, "scorer": {}, "rows": 1})
    for index in (0, 1):
        with pytest.raises(InputError, match="was started with dataset d, now data.jsonl"):
            share(data, scorer, out, index, 2)
    assert not list(out.glob("*.parquet"))


def test_of_processes_that_start_at_once_the_first_plan_stays(data, scorer, profile, tmp_path, monkeypatch):
    """Both see an empty folder, and write their plans one after the other."""
    out = tmp_path / "out"
    monkeypatch.setattr(plans, "_has_plan", lambda folder: False)
    assert share(data, scorer, out, 0, 2)
    plan = (out / PLAN).read_bytes()
    assert share(data, scorer, out, 1, 2)
    with pytest.raises(InputError, match="was started with keep_states true, now false"):
        share(data, LarfScorer(profile, device="cpu"), out, 1, 2)
    assert (out / PLAN).read_bytes() == plan


def test_a_process_whose_plan_was_replaced_writes_nothing(data, scorer, profile, tmp_path, monkeypatch):
    out, other = tmp_path / "out", LarfScorer(profile, device="cpu")
    overtaken(monkeypatch, lambda: score_source(open_source(str(data)), other, out, resume=True))
    with pytest.raises(InputError, match="plan.json was changed while rows were scored"):
        share(data, scorer, out, 0, 2)
    assert "larf_state" not in Scored.load(out, verify=True).rows.column_names


@pytest.mark.parametrize("hard_links", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_of_two_processes_with_one_piece_the_first_complete_shard_stays(
    data, scorer, profile, tmp_path, monkeypatch, caplog, hard_links, same
):
    """The second is as far as the end of its first piece when the first gets there."""
    out, write = tmp_path / "out", ShardScorer._write
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "not permitted")))
    digests = {}

    def write_late(self, path, *arguments):
        write(self, path, *arguments)
        if not digests:
            digests["first"] = None
            share(data, scorer, out, 0, FILES)
            [shard] = out.glob("*.parquet")
            digests["first"] = shard.read_bytes()
            if not same:
                pq.write_table(pq.read_table(path), path, compression="none")

    monkeypatch.setattr(ShardScorer, "_write", write_late)
    with caplog.at_level(logging.WARNING):
        share(data, scorer, out, 0, FILES)
    [shard] = out.glob("*.parquet")
    assert shard.read_bytes() == digests["first"]
    assert ("other content" in caplog.text) != same
    assert not list(out.glob(".*.tmp"))
    score_source(open_source(str(data)), scorer, out, resume=True)
    score_source(open_source(str(data)), scorer, tmp_path / "plain")
    check_equal(out, tmp_path / "plain")


def test_the_manifest_has_the_record_of_the_shard_that_stayed_when_both_were_recorded(data, scorer, tmp_path):
    """A process that was killed after it recorded its shard, before the shard got its name."""
    out = tmp_path / "out"
    share(data, scorer, out, 0, 1)
    [entry] = [path for path in (out / JOURNAL).iterdir() if "data-00003" in path.read_text()]
    record = json.loads(entry.read_text())
    shard = pq.read_table(out / "data-00003-of-00010.parquet")
    other = ShardScorer(folder=out, plan=record["plan"], scorer=scorer)
    piece = open_source(str(data)).pieces[3]
    (out / "data-00003-of-00010.parquet").unlink()
    temporary = out / f".{piece.name}.parquet.{other.run}.tmp"
    pq.write_table(shard, temporary, compression="none")
    other._place(temporary, piece)
    temporary.unlink()
    assert len(read_journal(out)["data-00003-of-00010.parquet"]) == 2
    score_source(open_source(str(data)), scorer, out, resume=True)
    Scored.load(out, verify=True)


def test_a_process_that_is_late_when_the_run_has_finished_ends_well_and_changes_nothing(
    data, scorer, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    overtaken(monkeypatch, lambda: score_source(open_source(str(data)), scorer, out, resume=True))
    assert share(data, scorer, out, 2, 4) == {"ok": 38}
    score_source(open_source(str(data)), scorer, tmp_path / "plain")
    check_equal(out, tmp_path / "plain")


def test_unfinished_files_of_other_processes_are_left_until_the_run_is_finished(data, scorer, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    share(data, scorer, out, 0, 2)
    theirs = out / ".data-00001-of-00010.parquet.ab12cd34.tmp"
    theirs.write_bytes(b"half")
    share(data, scorer, out, 0, 2)
    assert theirs.read_bytes() == b"half"
    score_source(open_source(str(data)), scorer, out, resume=True)
    assert not theirs.exists()


def test_a_folder_that_cannot_be_written_is_an_error_that_names_the_shard(data, scorer, tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    share(data, scorer, tmp_path / "out", 0, FILES)
    monkeypatch.setattr(os, "link", no_space)
    with pytest.raises(ScoringError, match=r"data-00001-of-00010.parquet: .*No space left on device; free disk"):
        share(data, scorer, tmp_path / "out", 1, FILES)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 1


def test_a_folder_with_something_else_is_left_alone(data, scorer, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        share(data, scorer, tmp_path / "out", 0, 2)
