"""A push under a budget and the estimate of what is left, against the real server."""

import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.errors import InputError, ReviewServerError
from larf_curate.review import ReviewQueue
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.budget.queued import sampling_of
from larf_curate.review.budget.rows import RANDOM_REASON
from larf_curate.review.decisions.responses import read_records
from larf_curate.review.records.record import SAMPLING
from larf_curate.scoring.selection import Selection
from tests.fixtures.review_rows import fake_profile, questions, selection, with_profile

WIDTH = 8
PROFILE = fake_profile(0.1 + np.random.default_rng(2).normal(size=(30, WIDTH)))


@pytest.fixture(scope="module")
def key(argilla_server):
    """API key of an annotator."""
    return argilla_server.add_user("budget-ann").api_key


def chosen_of(count=120, flagged=80):
    """A selection scored by `PROFILE`, and the truth by row id: the ten highest rows are harmful."""
    chosen = with_profile(selection(questions(count), flagged=flagged), digest=PROFILE.digest)
    ids = [*chosen.flagged["larf_row_id"], *chosen.kept["larf_row_id"]]
    return chosen, {row: index < 10 for index, row in enumerate(ids)}


def decide(queue, truth, rows, key):
    queue.submit({row: "remove" if truth[row] else "keep" for row in rows}, api_key=key)


def records_of(queue):
    return {record["external_id"]: record for record in queue._store().records(responses=True)}


def test_a_budget_is_kept_and_the_estimate_needs_the_server_only(queue, key, argilla_server):
    chosen, truth = chosen_of()
    pushed = queue.push_by_harm(chosen, budget=60, profile=PROFILE)
    assert (pushed.push.pushed, len(pushed.plan.chosen), len(pushed.plan.random)) == (60, 48, 12)
    assert pushed.grouping
    left = queue.status().left
    assert (left.estimate, left.unread, left.population) == (None, 80, "flagged rows")
    assert "read 10 more" in left.reason

    decide(queue, truth, pushed.plan.chosen, key)
    proposed = queue.propose(chosen, by="random", n=5, profile=PROFILE)
    assert [row.row_id for row in proposed.rows] == list(pushed.plan.random[:5])
    decide(queue, truth, pushed.plan.random, key)
    with ReviewQueue(queue.name, url=argilla_server.url, api_key=argilla_server.api_key) as elsewhere:
        left = elsewhere.status().left
    assert (left.unread, left.random_read, left.chosen_unread, left.found) == (20, 12, 0, 10)
    assert (left.estimate, left.low) == (0, 0)
    assert left.low <= sum(truth.values()) - left.found <= left.high < left.unread


def test_later_pushes_of_any_kind_keep_what_is_there(queue, key):
    chosen, truth = chosen_of()
    first = queue.push_by_harm(chosen, budget=40, profile=PROFILE)
    decide(queue, truth, first.plan.chosen[:20], key)
    before = records_of(queue)
    again = queue.push_by_harm(chosen, budget=40, profile=PROFILE)
    assert (again.plan.chosen, again.plan.random) == ((), ())
    assert records_of(queue) == before

    rescored = replace(chosen, flagged=chosen.flagged.map(lambda row: {"larf_percentile": 1.0}))
    assert queue.push(rescored).updated == 40
    after = records_of(queue)
    assert len(after) == 80
    for row, record in before.items():
        assert after[row]["metadata"][SAMPLING] == record["metadata"][SAMPLING]
        assert after[row]["responses"] == record["responses"]

    sent_otherwise = next(row for row in after if row not in before)
    decide(queue, truth, [sent_otherwise], key)
    assert queue.status().left.uncounted == 1
    queue.push_by_harm(chosen, budget=40, profile=PROFILE)
    left = queue.status().left
    assert (left.uncounted, left.unread) == (0, 80 - 21)


def test_one_of_near_identical_rows_is_sent_and_its_decision_counts_for_all(queue, key):
    rows = [*questions(1) * 4, *questions(36, 1)]
    chosen = selection(rows, flagged=40)
    states = [state if index > 3 else chosen.flagged["larf_state"][0] for index, state in
              enumerate(chosen.flagged["larf_state"])]  # fmt: skip
    copies = chosen.flagged.remove_columns("larf_state").add_column("larf_state", states)
    chosen = with_profile(replace(chosen, flagged=copies), digest=PROFILE.digest)
    pushed = queue.push_by_harm(chosen, budget=20, profile=PROFILE)
    assert (pushed.push.pushed, pushed.push.grouped) == (20, 3)
    leader = chosen.flagged["larf_row_id"][0]
    assert pushed.plan.chosen[0] == leader
    queue.submit({leader: "remove"}, api_key=key)
    left = queue.status().left
    assert (left.found, left.unread) == (4, 36)


def test_unflagged_rows_are_sampled_with_an_output_and_pulled_with_it(make_queue, argilla_server, key, tmp_path):
    chosen, truth = chosen_of(200, 20)
    chosen.save(tmp_path / "selection")
    PROFILE.save_pretrained(tmp_path / "profile")
    (tmp_path / "key").write_text(argilla_server.api_key)
    server = ("--name", "by-harm", "--url", argilla_server.url, "--api-key-file", str(tmp_path / "key"))

    def run(*arguments):
        result = CliRunner().invoke(main, ["review", *map(str, arguments), *server])
        assert result.exit_code == 0, result.output
        return result.output

    push = ("push", tmp_path / "selection", "--strategy", "harm", "--profile", tmp_path / "profile")
    told = run(*push, "--budget", 60, "-o", tmp_path / "more")
    assert "at random" in told
    assert run("status").count("cannot say yet: 0 of 12 random rows are read") == 1
    more = Selection.load(tmp_path / "more")
    assert len(more.flagged) + len(more.kept) == 200
    drawn = [row["larf_row_id"] for row in more.flagged if row["larf_reason"] == RANDOM_REASON]
    assert len(drawn) == 12
    queue = make_queue("by-harm")
    decide(queue, truth | dict.fromkeys(drawn[:1], True), list(records_of(queue)), key)
    left = json.loads(run("status", "--json"))["left"]
    assert (left["population"], left["rows"], left["unread"]) == ("flagged and unflagged rows", 200, 140)
    assert left["found"] == 11
    assert f"about {left['estimate']} [{left['low']}, {left['high']}] (95%)" in run("status")
    run("pull", "-o", tmp_path / "decisions")
    with pytest.raises(InputError, match=r"flagged and unflagged rows \(-o\), got flagged rows only"):
        queue.push_by_harm(chosen, budget=80, profile=PROFILE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--strategy", "harm"], "give --budget N"),
        (["--budget", "5"], "give --strategy harm too"),
        (["--strategy", "harm", "--budget", "5", "--group"], "leave out --group"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message, tmp_path):
    selection(flagged=2).save(tmp_path / "selection")
    result = CliRunner().invoke(main, ["review", "push", str(tmp_path / "selection"), *options])
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())


def test_random_rows_are_proposed_only_after_a_push_by_expected_harm(queue):
    chosen, _ = chosen_of(20, 10)
    queue.push(chosen)
    assert queue.status().left is None
    with pytest.raises(InputError, match="push with --strategy harm"):
        queue.propose(chosen, by="random", profile=PROFILE)


def test_a_push_that_the_server_interrupts_and_a_deleted_row_leave_an_estimate(
    queue, key, argilla_server, monkeypatch, tmp_path
):
    chosen, truth = chosen_of()
    monkeypatch.setattr("larf_curate.review.records.push.BATCH_ROWS", 10)
    upsert = RecordStore.upsert
    calls = []

    def stops(store, body):
        calls.append(body)
        if len(calls) == 3:
            raise ReviewServerError("the server is down")
        upsert(store, body)

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "upsert", stops)
        with pytest.raises(ReviewServerError):
            queue.push_by_harm(chosen, budget=60, profile=PROFILE)
    assert len(queue.row_ids()) == 20
    queue.push_by_harm(chosen, budget=60, profile=PROFILE)
    assert len(queue.row_ids()) == 60
    decide(queue, truth, queue.row_ids(), key)
    left = queue.status().left
    assert (left.unread, left.random_read, left.random_missing) == (20, 20, 0)
    assert left.low <= sum(truth.values()) - left.found <= left.high < left.unread
    records = records_of(queue)
    sampled = sampling_of(read_records(records.values(), {}))
    lost = sampled.by_stage[0].random[2]
    store = queue._store()
    store._connection.send("DELETE", f"/api/v1/datasets/{store.dataset_id}/records?ids={records[lost]['id']}", None)
    after = queue.status().left
    assert (after.random_read, after.random_missing) == (19, 1)
    assert left.high < after.high < after.unread
    (tmp_path / "key").write_text(argilla_server.api_key)
    server = ("--name", queue.name, "--url", argilla_server.url, "--api-key-file", str(tmp_path / "key"))
    result = CliRunner().invoke(main, ["review", "status", *server])
    assert "The upper bound counts 1 random row missing in the queue" in result.output


def test_rows_that_an_earlier_push_sent_are_flagged_in_the_selection_of_the_next(queue, key):
    chosen, truth = chosen_of(200, 20)
    queue.push_by_harm(chosen, budget=60, unflagged=True, profile=PROFILE)  # its selection is lost
    again = queue.push_by_harm(chosen, budget=80, unflagged=True, profile=PROFILE)
    records = records_of(queue)
    assert set(records) <= set(again.selection.flagged["larf_row_id"])
    unflagged = sorted(set(records) - set(chosen.flagged["larf_row_id"]))
    reasons = dict(zip(again.selection.flagged["larf_row_id"], again.selection.flagged["larf_reason"], strict=True))
    by_stage = sampling_of(read_records(records.values(), {})).by_stage
    drawn = {row for stage in by_stage for row in stage.random}
    assert {row for row in unflagged if reasons[row] == RANDOM_REASON} == drawn.intersection(unflagged)
    decide(queue, dict.fromkeys(records, True), records, key)
    outcome = queue.pull().apply(again.selection)
    assert set(outcome.removed["larf_row_id"]) == set(records)
