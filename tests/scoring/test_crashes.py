"""Rows that end the process that scores them: set aside by number, and the run completes."""

import json
import logging
import multiprocessing
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest

from larf_curate.data import sources
from larf_curate.data.sources import open_source
from larf_curate.errors import ScoringError
from larf_curate.profile import SafetyProfile
from larf_curate.scoring import crashes
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.reasons import first_reasons
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from tests.fixtures.deadly import DeadlyGuard
from tests.fixtures.fresh_process import CONTEXT, start
from tests.fixtures.long import at_length
from tests.fixtures.models import six_pairs

ROWS = 60
PER_PIECE = 20
pytestmark = [pytest.mark.usefixtures("own_caches"), pytest.mark.slow]


@pytest.fixture
def scorer(tiny_llama):
    references = six_pairs()
    profile = SafetyProfile.build(tiny_llama, references, layers=(1, 3), signal="larf", dtype="float32", device="cpu")
    return LarfScorer(profile, exemplars=ExemplarIndex.of_profile(profile), keep_states=True, device="cpu")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A function that writes a file of rows, of which some have the word ``deadly``."""
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", PER_PIECE)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: CONTEXT)  # starts sooner than the real one

    def write(*deadly):
        answers = ["deadly" if i in deadly else f"Bake {'it ' * (i % 5)}." for i in range(ROWS)]
        rows = [{"question": f"Question {i}?", "answer": answer} for i, answer in enumerate(answers)]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / "data.jsonl"

    return write


def statuses(folder):
    return [status for path in sorted(folder.glob("*.parquet")) for status in read(path, "larf_status")]


def read(path, column):
    return pq.read_table(path)[column].to_pylist()


@pytest.mark.parametrize("name", ["SIGSEGV", pytest.param("SIGKILL", marks=at_length)])
def test_rows_that_end_a_worker_are_set_aside_by_number_and_all_others_are_scored(data, scorer, tmp_path, caplog, name):
    deadly, out = (7, 8, 47), tmp_path / "out"
    source = open_source(str(data(*deadly)))
    guard = DeadlyGuard("deadly", signal.Signals[name])
    with caplog.at_level(logging.WARNING):
        manifest = score_source(source, scorer, out, num_proc=2, guard=guard)
    assert manifest["status"] == {"crashed": 3, "ok": ROWS - 3}
    assert manifest["guard"]["status"] == {"crashed": 3, "ok": ROWS - 3}
    assert [row for row, status in enumerate(statuses(out)) if status == "crashed"] == list(deadly)
    for row in deadly:
        assert f"row {row} ended the process" in caplog.text
    assert [row for row, reason in first_reasons(source, out, scorer) if "ended the process" in reason] == list(deadly)
    score_source(source, scorer, tmp_path / "plain", guard=DeadlyGuard("nothing"))
    for path in out.glob("*.parquet"):
        got, plain = (pq.read_table(folder / path.name) for folder in (out, tmp_path / "plain"))
        crashed = [status == "crashed" for status in got["larf_status"].to_pylist()]
        assert got.select(["question", "answer"]) == plain.select(["question", "answer"])
        assert [score is None for score in got["larf_score"].to_pylist()] == crashed
        scores, want = (np.array(table["larf_score"].to_pylist(), float)[~np.array(crashed)] for table in (got, plain))
        np.testing.assert_allclose(scores, want, rtol=1e-4, atol=1e-6)


def score_with_guard(data, scorer, out, resume, num_proc=1):
    """What runs in a process of its own."""
    sources.ROWS_PER_PIECE = PER_PIECE
    multiprocessing.get_context = lambda _: CONTEXT
    score_source(open_source(str(data)), scorer, out, resume=resume, num_proc=num_proc, guard=DeadlyGuard("deadly"))


def run_alone(*arguments, log):
    """Exit code of `score_with_guard`, and what it printed."""
    process = start(score_with_guard, *arguments, log=log)
    process.join()
    return process.exitcode, log.read_text()


def test_a_single_process_that_a_row_ended_is_resumed_without_the_row(data, scorer, tmp_path):
    path, out = data(33), tmp_path / "out"
    for resume, code in ((False, -signal.SIGSEGV), (True, 0)):
        assert run_alone(path, scorer, out, resume, log=tmp_path / "log")[0] == code, (tmp_path / "log").read_text()
    assert [row for row, status in enumerate(statuses(out)) if status != "ok"] == [33]
    assert not (out / ".journal").exists()


@pytest.mark.parametrize(
    "deadly", [pytest.param((0,), marks=at_length), (20,), pytest.param((20, 21), marks=at_length)]
)
def test_a_file_whose_every_row_crashes_is_set_aside(data, scorer, tmp_path, deadly):
    folder = tmp_path / "files"
    folder.mkdir()
    lines = data(*deadly).read_text().splitlines(keepends=True)[: max(20, deadly[-1]) + 1]
    cut = 20 if deadly[0] else 1
    (folder / "a.jsonl").write_text("".join(lines[:cut]))
    (folder / "b.jsonl").write_text("".join(lines[cut:]))
    out = tmp_path / "out"
    for resume, code in ((False, -signal.SIGSEGV), (True, 0)):
        assert run_alone(folder, scorer, out, resume, log=tmp_path / "log")[0] == code, (tmp_path / "log").read_text()
    assert [row for row, status in enumerate(statuses(out)) if status == "crashed"] == list(deadly)


@at_length
def test_several_workers_never_score_in_the_process_itself(data, scorer, tmp_path):
    rows = tmp_path / "few.jsonl"
    rows.write_text("".join(data(7).read_text().splitlines(keepends=True)[:15]))
    assert run_alone(rows, scorer, tmp_path / "out", False, 2, log=tmp_path / "log")[0] == 0
    assert [row for row, status in enumerate(statuses(tmp_path / "out")) if status == "crashed"] == [7]


@at_length
def test_many_adjacent_rows_are_set_aside_while_others_can_be_scored(data, scorer, tmp_path):
    source = open_source(str(data(*range(36, 60))))
    manifest = score_source(source, scorer, tmp_path / "out", num_proc=2, guard=DeadlyGuard("deadly"))
    assert manifest["status"] == {"crashed": 24, "ok": 36}
    assert statuses(tmp_path / "out") == ["ok"] * 36 + ["crashed"] * 24


@at_length
def test_a_model_that_always_crashes_is_an_error_and_no_status_of_rows_however_often_it_is_resumed(
    data, scorer, tmp_path
):
    path, log = data(*range(ROWS)), tmp_path / "log"
    assert run_alone(path, scorer, tmp_path / "out", False, log=log)[0] == -signal.SIGSEGV
    for _ in range(2):
        log.write_text("")
        code, text = run_alone(path, scorer, tmp_path / "out", True, log=log)
        assert code == 1
        assert "each of rows 0 to 3 ended the process that scored it" in text
        assert "the model or this machine is at fault" in text


@pytest.mark.parametrize(
    ("rows", "wanted"), [pytest.param(ROWS - PER_PIECE, "rows 20 to 23", marks=at_length), (22, "rows 20 to 21")]
)
def test_a_machine_that_fails_in_the_middle_is_an_error_and_no_status_of_rows(data, scorer, tmp_path, rows, wanted):
    folder = tmp_path / "files"
    folder.mkdir()
    lines = data(21).read_text().splitlines(keepends=True)[:rows]
    (folder / "a.jsonl").write_text("".join(lines[:20]))
    (folder / "b.jsonl").write_text("".join(lines[20:]))
    code, _ = run_alone(folder, scorer, tmp_path / "out", False, log=tmp_path / "log")  # which scores the first file
    assert code == -signal.SIGSEGV
    (tmp_path / "broken").touch()
    guard = DeadlyGuard("deadly", broken=tmp_path / "broken")
    with pytest.raises(ScoringError, match=f"each of {wanted} ended the process"):
        score_source(open_source(str(folder)), scorer, tmp_path / "out", resume=True, guard=guard)


def test_rows_that_only_crash_together_are_an_error_that_names_the_options(data, scorer, tmp_path):
    source = open_source(str(data(5, 6)))
    with pytest.raises(ScoringError, match="rows 0 to 19, of which none alone ends it: .*smaller --num-proc or"):
        score_source(source, scorer, tmp_path / "out", num_proc=2, guard=DeadlyGuard("deadly", together=2))


def test_rows_that_were_set_aside_are_added_in_their_places():
    columns = {"larf_score": [0.1, 0.2], "larf_status": ["ok", "ok"], "larf_guard": [{}, {}]}
    cell = {"request": None, "answer": None, "status": "crashed"}
    assert crashes.with_crashed(columns, [3, 0]) == {
        "larf_score": [None, 0.1, 0.2, None],
        "larf_status": ["crashed", "ok", "ok", "crashed"],
        "larf_guard": [cell, {}, {}, cell],
    }
