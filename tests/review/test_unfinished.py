"""Edits without a corrected answer decide nothing, are told and sent back; the suggested answer is no correction."""

import json

import pytest
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.review.argilla.dataset import RecordStore
from tests.fixtures.review_rows import questions, selection
from tests.review.test_queue import annotators, respond  # noqa: F401  a fixture


def edit(text):
    return {"decision": "edit", "corrected_answer": text}


@pytest.fixture
def reviewed(queue, annotators):  # noqa: F811
    """Six rows: three edits of which one has a correction, two kept, of which one with an unused correction."""
    chosen = selection(questions(6), flagged=6)
    queue.push(chosen)
    ids, answers = chosen.flagged["larf_row_id"][:], chosen.flagged["answer"][:]
    given = [edit(answers[0] + "\n"), edit(None), edit("Better."), edit(answers[3]), edit("Unused."), edit(None)]
    for index in (3, 4):
        given[index]["decision"] = "keep"
    respond(annotators["ann"], queue, dict(zip(ids[:5], given, strict=False)))
    return queue, chosen, ids


def test_they_are_not_done_and_are_listed_with_their_annotators(reviewed):
    queue, _, ids = reviewed
    state = queue.status()
    assert (state.done, state.pending, state.decisions) == (3, 3, {"edit": 1, "keep": 2})
    assert state.unfinished == {ids[0]: ("ann",), ids[1]: ("ann",)}
    assert state.unused == {ids[4]: ("ann",)}
    found = queue.send_back()
    assert (found.votes, found.unfinished) == ({}, state.unfinished)
    assert found.texts[ids[0]] == "What is 0 plus one? → It is 1."
    marked = {r["external_id"] for r in queue._store().records(responses=False) if r["metadata"].get("proposed")}
    assert marked == set(ids[:2])


def test_pull_says_so_and_withholds_them_and_keeps_are_no_edits(reviewed, caplog):
    queue, chosen, ids = reviewed
    outcome = queue.pull().apply(chosen)
    assert caplog.text.count("an edit without a corrected answer leaves it pending (ann)") == 2
    kept = {row["larf_row_id"]: (row["answer"], row["larf_decision"]) for row in outcome.kept}
    assert kept == {ids[2]: ("Better.", "edit"), ids[3]: ("It is 4.", "keep"), ids[4]: ("It is 5.", "keep")}
    assert set(outcome.withheld["larf_row_id"]) == {ids[0], ids[1], ids[5]}
    assert {row.corrected_answer for row in outcome.decisions.rows} == {None, "Better."}


def test_another_annotators_correction_finishes_an_edit(make_queue, annotators):  # noqa: F811
    queue = make_queue("unfinished-two", min_submitted=2)
    chosen = selection(questions(2), flagged=2)
    queue.push(chosen)
    ids = chosen.flagged["larf_row_id"][:]
    respond(annotators["ann"], queue, {ids[0]: edit(None), ids[1]: edit(None)})
    respond(annotators["bob"], queue, {ids[0]: edit("Better."), ids[1]: "keep"})
    state = queue.status()
    assert (state.done, state.unfinished) == (1, {ids[1]: ("ann",)})
    assert [row.status for row in queue.pull().for_rows(chosen.flagged).rows] == ["decided", "conflict"]
    assert queue.send_back().votes == {ids[1]: {"ann": "edit", "bob": "keep"}}


def test_a_queue_of_an_earlier_version_gets_suggestions_with_the_next_push(queue, annotators, monkeypatch):  # noqa: F811
    chosen = selection()
    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "question_id", lambda self, name: None)
        patch.setattr("larf_curate.review.records.record.original_answer", lambda row, columns: None)
        queue.push(chosen)
    ids, answers = chosen.flagged["larf_row_id"][:], chosen.flagged["answer"][:]
    respond(annotators["ann"], queue, {ids[0]: edit(answers[0])})
    assert queue.status().unfinished == {}, "nothing is known of the answer yet"
    assert queue.push(chosen).updated == 3
    assert queue.status().unfinished == {ids[0]: ("ann",)}
    assert queue.push(chosen).unchanged == 3


def test_the_commands_tell_and_send_back(reviewed, argilla_server, tmp_path, monkeypatch, caplog):
    queue, chosen, ids = reviewed
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "key").write_text(argilla_server.api_key)
    chosen.save(tmp_path / "sel")
    server = ["--name", queue.name, "--url", argilla_server.url, "--api-key-file", str(tmp_path / "key")]

    def run(*arguments):
        result = CliRunner().invoke(main, ["review", *map(str, arguments), *server])
        assert result.exit_code == 0, result.output
        return result

    told = run("status").stdout
    assert "edits without a corrected answer" in told
    assert told.count(ids[0]) == told.count(ids[1]) == 1
    hint = next(line for line in told.splitlines() if "larf-curate review conflicts" in line)
    assert f"--name {queue.name} --url {argilla_server.url} --api-key-file {tmp_path / 'key'}" in hint
    assert json.loads(run("status", "--json").stdout)["unfinished"] == {ids[0]: ["ann"], ids[1]: ["ann"]}
    sent = run("conflicts").stdout
    assert "What is 0 plus one? → It is 1." in sent
    assert "edit without a corrected answer: ann" in sent
    run("pull", tmp_path / "sel", "-o", tmp_path / "dec")
    assert "an edit without a corrected answer leaves it pending (ann)" in caplog.text
