"""The loop of learning from people, against the real server."""

import html
import json
from dataclasses import replace
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from larf_curate.cli import main
from larf_curate.columns import content_digest, stateless
from larf_curate.errors import InputError
from larf_curate.review import Decision, Decisions
from larf_curate.review.argilla.connection import Connection
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.selection import Selection, select
from tests.fixtures.decisions_folder import scored_record
from tests.fixtures.review_rows import fake_profile, questions, scored, with_profile
from tests.fixtures.scored_folder import digest_of

WIDTH = 8
BARE = fake_profile(3 + np.random.default_rng(2).normal(size=(30, WIDTH)))
PROFILE = replace(BARE, references={**BARE.references, "labels": ["fraud"] * 10})


@pytest.fixture(scope="module")
def people(argilla_server):
    """API keys of two annotators by name."""
    return {name: argilla_server.add_user(f"learn-{name}").api_key for name in ("ann", "bob")}


def mixed(n=120, flagged=60, seed=0, start=0):
    """A selection of which every fourth row is harmful, as its state shows and its score does not."""
    rng = np.random.default_rng(seed)
    bad = np.arange(n) % 4 == 0
    states = 3 + rng.normal(size=(n, WIDTH)) * 0.5
    states[bad, 0] += 2.5
    rows = scored(questions(n, start), [1.0 - i / n for i in range(n)])
    rows = rows.remove_columns("larf_state").add_column("larf_state", states.astype("f2").tolist())
    rows = rows.add_column("bad", bad.tolist())
    manifest = scored_record(n, source={}, scores=digest_of(rows["larf_score"]))
    chosen = select(rows, top_k=flagged, source="test", scored=manifest)
    whole = [*chosen.flagged, *chosen.kept]
    return chosen, {row["larf_row_id"]: row["bad"] for row in whole}


def records_of(queue):
    return {record["external_id"]: record for record in queue._store().records(responses=True)}


def worst_first(queue):
    """Undecided rows as the page lists them."""
    scope = {"entity": "metadata", "metadata_property": "larf_score"}
    body = {
        "sort": [{"scope": scope, "order": "desc"}],
        "filters": {
            "and": [{"type": "terms", "scope": {"entity": "record", "property": "status"}, "values": ["pending"]}]
        },
    }
    path = f"/api/v1/me/datasets/{queue.dataset_id}/records/search?limit=1000"
    return [item["record"]["external_id"] for item in queue._connection.request("POST", path, body)["items"]]


def opened(url, queue, key):
    """The rows that a user sees who opens a link: its filters as the page sends them to the server."""
    asked = {name: values[0] for name, values in parse_qs(urlparse(url).query).items()}
    name, term = asked["metadata"].split(".")
    filters = [
        {"type": "terms", "scope": {"entity": "metadata", "metadata_property": name}, "values": [term]},
        {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": [asked["status"]]},
    ]
    if asked["status"] == "pending":
        filters.append({"type": "terms", "scope": {"entity": "record", "property": "status"}, "values": ["pending"]})
    user = Connection(queue._connection.url, key, workspace="argilla", timeout=60)
    try:
        path = f"/api/v1/me/datasets/{queue.dataset_id}/records/search?limit=1000"
        found = user.request("POST", path, {"filters": {"and": filters}})["items"]
    finally:
        user.close()
    return {item["record"]["external_id"] for item in found}


def decide(queue, truth, rows, key):
    queue.submit({row: "remove" if truth[row] else "keep" for row in rows}, api_key=key)


def test_the_page_is_ranked_anew_in_place_and_no_response_is_touched(queue, people):
    chosen, truth = mixed()
    queue.push(chosen)
    before = worst_first(queue)
    assert before == list(chosen.flagged["larf_row_id"])
    decide(queue, truth, before[:16], people["ann"])
    answered = records_of(queue)

    done = queue.rerank(chosen)
    after = worst_first(queue)
    assert set(after) == set(before[16:])
    assert after != before[16:]
    assert roc_auc_score([truth[row] for row in after], -np.arange(len(after))) > 0.9
    learned = dict(
        zip(done.selection.flagged["larf_row_id"], done.selection.flagged["larf_learned_score"], strict=True)
    )
    assert after == sorted(after, key=lambda row: -learned[row])
    assert done.updated == len(after)
    assert (done.learned.removed, done.learned.kept) == (4, 12)

    now = records_of(queue)
    machine = dict(zip(chosen.flagged["larf_row_id"], chosen.flagged["larf_score"], strict=True))
    for row, record in now.items():
        old = answered[row]
        assert [record[name] for name in ("responses", "status")] == [old[name] for name in ("responses", "status")]
        assert record["fields"]["conversation"] == old["fields"]["conversation"]
        scores = {name: record["metadata"].pop(name) for name in ("larf_score", "machine_score", "learned_score")}
        want = {"learned_score": learned[row], "machine_score": machine[row]}
        assert scores == pytest.approx(want | {"larf_score": learned[row] if row in after else machine[row]})
        assert record["metadata"].items() <= old["metadata"].items()
        said = f"learned score **{learned[row]:.3f}**, machine's score **{machine[row]:.3f}**"
        assert said in record["fields"]["evidence"]

    assert queue.rerank(chosen).updated == 0  # nobody decided anything in between
    assert queue.push(chosen).unchanged == 60
    assert worst_first(queue) == after


def test_without_decisions_the_order_is_the_machines(queue):
    chosen, _ = mixed(20, 10)
    queue.push(chosen)
    done = queue.rerank(chosen)
    assert (done.updated, done.learned.held_out) == (0, None)
    assert worst_first(queue) == list(chosen.flagged["larf_row_id"]) == list(done.selection.flagged["larf_row_id"])
    assert done.selection.flagged["larf_learned_score"][:] == pytest.approx(chosen.flagged["larf_score"][:])


def test_rows_outside_the_queue_join_it(queue, people, tmp_path):
    chosen, truth = mixed()
    queue.push(chosen)
    decide(queue, truth, chosen.flagged["larf_row_id"][:40], people["ann"])
    seen = queue.rerank(chosen)
    harmful = {row for row in chosen.kept["larf_row_id"] if truth[row]}
    assert seen.overlooked >= 0.8 * len(harmful)

    done = queue.rerank(chosen, add=15)
    assert len(set(done.added) & harmful) >= 13
    assert set(done.added) <= set(worst_first(queue))
    assert done.overlooked == max(0, seen.overlooked - 15)
    done.save(tmp_path / "selection")
    loaded = Selection.load(tmp_path / "selection")
    assert (len(loaded.flagged), len(loaded.kept)) == (75, 45)
    scores = loaded.flagged["larf_learned_score"][:]
    assert scores == sorted(scores, reverse=True)
    assert loaded.flagged["larf_score"] != loaded.flagged["larf_learned_score"]
    moved = [row for row in loaded.flagged if row["larf_row_id"] in done.added]
    assert all(row["larf_flagged"] and row["larf_reason"].startswith("learned score") for row in moved)

    decide(queue, truth, done.added, people["ann"])
    outcome = queue.pull().apply(loaded)
    assert len(outcome.kept) + len(outcome.removed) + len(outcome.withheld) == 120
    again = queue.rerank(loaded, add=5)
    assert not set(again.added) & set(done.added)
    with pytest.raises(InputError, match="this selection does not flag"):
        queue.pull().apply(chosen)  # would publish what people removed
    mended = queue.rerank(chosen).selection  # as after a run cut off before the new selection was written
    assert set(mended.flagged["larf_row_id"]) == set(again.selection.flagged["larf_row_id"])


def test_removed_rows_become_exemplars(queue, people):
    chosen, truth = mixed(40, 20)
    queue.push(chosen)
    decide(queue, truth, chosen.flagged["larf_row_id"][:10], people["ann"])
    done = queue.rerank(chosen)
    removed = [row for row in chosen.flagged["larf_row_id"][:10] if truth[row]]
    assert list(done.removed["larf_row_id"]) == removed
    states = np.random.default_rng(0).normal(size=(3, WIDTH)).astype("f4")
    grown = done.exemplars(ExemplarIndex(states=states, ids=("a", "b", "c"), labels=("x",) * 3, layer=9))
    assert grown.ids == ("a", "b", "c", *removed)
    assert done.exemplars(grown).ids == grown.ids
    alike = np.array([row["larf_state"] for row in chosen.flagged if row["larf_row_id"] == removed[0]], "f4")
    assert grown.search(alike, 1)[0][0].id == removed[0]


def test_the_next_rows_are_the_highest_the_least_certain_and_the_most_different(queue, people):
    chosen, truth = mixed()
    queue.push(chosen)
    decided = chosen.flagged["larf_row_id"][:16]
    decide(queue, truth, decided, people["ann"])
    done = queue.rerank(chosen)
    undecided = set(chosen.flagged["larf_row_id"]) - set(decided)
    place = {row: i for i, row in enumerate([*chosen.flagged["larf_row_id"], *chosen.kept["larf_row_id"]])}

    by_score = queue.propose(chosen, by="score", n=5)
    assert [row.row_id for row in by_score.rows] == worst_first(queue)[:5]
    assert by_score.rows[0].score == pytest.approx(done.learned.scores[place[by_score.rows[0].row_id]])
    assert "chance of removal" in by_score.rows[0].why
    assert "nearest is" in by_score.rows[0].why

    uncertain = queue.propose(chosen, by="uncertain", n=5)
    want = sorted(undecided, key=lambda row: abs(done.learned.chances[place[row]] - 0.5))[:5]
    assert [row.row_id for row in uncertain.rows] == want

    different = queue.propose(chosen, by="different", n=3)
    units = done.learned.directions / np.linalg.norm(done.learned.directions, axis=1, keepdims=True)
    known, want = [place[row] for row in decided], []
    for _ in range(3):
        left = [place[row] for row in undecided if place[row] not in want]
        want.append(min(left, key=lambda i: max(units[i] @ units[j] for j in [*known, *want])))
    assert [place[row.row_id] for row in different.rows] == want

    for shown in (by_score, uncertain, different):  # each link shows its rows and no others
        assert opened(shown.url, queue, people["bob"]) == {row.row_id for row in shown.rows}
    ids = {row: record["id"] for row, record in records_of(queue).items()}
    assert all(row.record_id == ids[row.row_id] for row in by_score.rows)
    decide(queue, truth, [row.row_id for row in by_score.rows], people["ann"])
    later = queue.propose(chosen, by="score", n=5)
    assert not {row.row_id for row in later.rows} & {row.row_id for row in by_score.rows}
    assert opened(later.url, queue, people["bob"]) == {row.row_id for row in later.rows}


def test_a_row_that_cannot_be_scored_is_proposed_as_one_that_only_people_can_judge(queue):
    rows = scored([*questions(3), {"question": None, "answer": None}], [0.9, 0.5, 0.1, None])
    chosen = select(rows, top_k=2, source="test")
    queue.push(chosen)
    last = queue.propose(chosen, by="uncertain", n=3).rows[-1]
    assert (last.score, last.chance, last.machine_score) == (None, None, None)
    assert "only a person" in last.why
    assert len(queue.propose(chosen, by="score", n=9).rows) == 3
    assert queue.propose(chosen, by="different", n=1).rows[0].why.startswith("nothing decided yet")
    with pytest.raises(InputError, match="score, uncertain, different"):
        queue.propose(chosen, by="luck")
    with pytest.raises(InputError, match="at least 1"):
        queue.propose(chosen, n=0)


def test_conflicts_go_back_to_those_who_answered_until_they_agree(make_queue, people):
    queue = make_queue("conflicts", min_submitted=2)
    chosen, _ = mixed(24, 12)
    queue.push(chosen)
    ids = list(chosen.flagged["larf_row_id"])
    queue.submit(dict.fromkeys(ids[:6], "remove"), api_key=people["ann"])
    queue.submit(dict.fromkeys(ids[:3], "remove") | dict.fromkeys(ids[3:6], "keep"), api_key=people["bob"])
    queue.submit({ids[7]: "keep"}, api_key=people["ann"])  # one answer is no conflict

    sent = queue.send_back()
    assert {row: dict(votes) for row, votes in sent.votes.items()} == {
        row: {"learn-ann": "remove", "learn-bob": "keep"} for row in ids[3:6]
    }
    for key in people.values():
        assert opened(sent.url, queue, key) == set(ids[3:6])

    uncertain = queue.propose(chosen, by="uncertain", n=4)
    assert [row.row_id for row in uncertain.rows[:3]] == ids[3:6]
    assert uncertain.rows[0].conflict
    assert uncertain.rows[0].why == "annotators disagree: learn-ann remove, learn-bob keep"
    assert opened(uncertain.conflicts_url, queue, people["ann"]) == set(ids[3:6])
    assert opened(uncertain.url, queue, people["ann"]) == {uncertain.rows[3].row_id}

    queue.submit(dict.fromkeys(ids[3:5], "remove"), api_key=people["bob"])  # bob changes two
    again = queue.send_back()
    assert set(again.votes) == {ids[5]}
    assert opened(again.url, queue, people["bob"]) == {ids[5]}
    statuses = {row.row_id: row.status for row in queue.pull().rows}
    assert [statuses[row] for row in ids[:6]] == ["decided"] * 5 + ["conflict"]


def decided(chosen, folder):
    """Save decisions on the first two flagged rows: one removed, one kept."""
    made = tuple(
        Decision(row_id=row["larf_row_id"], status="decided", decision=verdict, content_digest=content_digest(row))
        for row, verdict in zip(stateless(chosen.flagged), ("remove", "keep"), strict=False)
    )
    Decisions(made, "majority").apply(chosen).save(folder)
    return folder


def test_decisions_on_another_dataset_rank_a_queue_that_nobody_has_begun(queue, tmp_path):
    chosen, _ = mixed(24, 12)
    queue.push(chosen)
    done = queue.rerank(chosen, earlier=[decided(mixed(48, 24, start=500)[0], tmp_path / "earlier")])
    assert (done.learned.earlier, done.learned.removed + done.learned.kept) == (2, 0)
    assert done.updated == 12
    ranked = sorted(zip(done.learned.scores[:12], chosen.flagged["larf_row_id"], strict=True), reverse=True)
    assert [row for _, row in ranked] == list(done.selection.flagged["larf_row_id"])


def test_the_commands_learn_propose_and_send_back(argilla_server, make_queue, people, tmp_path, monkeypatch):
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "home"))
    key, queue = tmp_path / "key.txt", make_queue("commands-learning", min_submitted=2)
    key.write_text(argilla_server.api_key)
    chosen, truth = mixed(48, 24)
    chosen = with_profile(chosen, digest=PROFILE.digest)
    chosen.save(tmp_path / "selection")
    PROFILE.save_pretrained(tmp_path / "profile")
    server = ["--name", "commands-learning", "--url", argilla_server.url, "--api-key-file", str(key)]

    def run(*arguments, code=0):
        result = CliRunner().invoke(main, ["review", *map(str, arguments), *server])
        assert result.exit_code == code, result.output
        return result.stdout

    run("push", tmp_path / "selection", "--annotators", 2)
    ids = list(chosen.flagged["larf_row_id"])
    for user in people.values():
        decide(queue, truth, ids[:12], user)
    decide(queue, truth, ids[12:13], people["ann"])
    decide(queue, {ids[12]: not truth[ids[12]]}, ids[12:13], people["bob"])

    shown = json.loads(run("next", "-n", 3, "--json"))
    assert [row["row_id"] for row in shown["rows"]] == [row.row_id for row in queue.propose(chosen, n=3).rows]
    disputed = run("next", "--by", "uncertain", "-n", 1)
    for part in ("annotators", "disagree", "What is 12", "13."):
        assert part in disputed
    assert "metadata=proposed.different" in run("next", "--by", "different")
    assert json.loads(run("conflicts", "--json"))["votes"].keys() == {ids[12]}
    listed = run("conflicts")
    assert "metadata=proposed.conflict" in listed
    assert "What is 12" in listed

    assert "cannot be evaluated yet" in run("rerank", "--profile", tmp_path / "profile")
    run("rerank", "--add", 2, code=2)
    run("rerank", "-o", tmp_path / "selection", code=2)
    told = json.loads(
        run("rerank", "--profile", tmp_path / "profile", "-o", tmp_path / "learned", "--add", 2, "--json")
    )
    assert (told["removed"], told["kept"], len(told["added"])) == (3, 9, 2)
    assert len(Selection.load(tmp_path / "learned").flagged) == 26
    exemplars = ExemplarIndex.load(tmp_path / "learned" / "exemplars")
    assert set(exemplars.ids) >= {row for row in ids[:12] if truth[row]}

    other = with_profile(mixed(48, 24, start=500)[0], digest=PROFILE.digest)
    decided(other, tmp_path / "earlier")
    told = json.loads(run("rerank", "--profile", tmp_path / "profile", "--decisions", tmp_path / "earlier", "--json"))
    assert (told["earlier"], told["removed"], told["kept"]) == (2, 3, 9)
    assert told["held_out"]["own_auroc"] is not None
    assert "decisions on other datasets" in run("rerank", "--decisions", tmp_path / "earlier")
    assert json.loads(run("next", "--decisions", tmp_path / "earlier", "--json"))["summary"]["earlier"] == 2
    assert json.loads(run("pull", "-o", tmp_path / "decisions", "--json"))["counts"]["removed"] == 3


def test_a_decision_about_an_earlier_text_teaches_nothing(queue, people):
    chosen, truth = mixed(24, 12)
    queue.push(chosen)
    decide(queue, truth, chosen.flagged["larf_row_id"][:4], people["ann"])
    queue.push(chosen.flagged.map(lambda row, i: {"answer": "other"} if i == 0 else {}, with_indices=True))
    done = queue.rerank(chosen)
    assert done.learned.removed + done.learned.kept == 3


def test_rows_without_states_are_refused(queue):
    chosen = select(scored(questions(4)).remove_columns("larf_state"), top_k=2, source="test")
    queue.push(chosen)
    with pytest.raises(InputError, match="keep_states"):
        queue.rerank(chosen)
    nothing = chosen.flagged.select([])
    with pytest.raises(InputError, match="no rows"):
        queue.rerank(Selection(kept=nothing, flagged=nothing, rule={"top_k": 1}, threshold=None))


def test_later_pushes_keep_what_was_learned_and_rank_added_rows_among_all(queue, people):
    chosen, truth = mixed(40, 20)
    queue.push(chosen)
    ids = list(chosen.flagged["larf_row_id"])
    decide(queue, truth, ids[:8], people["ann"])
    done = queue.rerank(chosen, add=2)
    before = records_of(queue)
    worst = [*ids, *sorted(done.added, key=chosen.kept["larf_row_id"][:].index)]
    for row in done.added:
        rank = worst.index(row) + 1
        said = f"Added for what people decided on similar rows; rank {rank} of 22 by the machine's score."
        assert said in html.unescape(before[row]["fields"]["evidence"])
    kept, removed = (next(row for row in ids[:8] if truth[row] is bad) for bad in (False, True))
    shown = html.unescape(before[ids[9]]["fields"]["evidence"])
    assert "nearest row that people kept (cosine" in shown
    assert "nearest row that people removed (cosine" in shown
    assert before[kept]["metadata"]["learned_score"] < before[removed]["metadata"]["learned_score"]

    result = queue.push(done.selection)  # with two more rows, every rank is of 22
    assert (result.pushed, result.updated) == (0, 20)
    after = records_of(queue)
    names = ("larf_score", "machine_score", "learned_score")
    assert {row: [r["metadata"][name] for name in names] for row, r in after.items()} == {
        row: [r["metadata"][name] for name in names] for row, r in before.items()
    }
    assert all("After people's decisions" in record["fields"]["evidence"] for record in after.values())
    assert queue.push(done.selection).unchanged == 22
    rescored = chosen.flagged.map(lambda row: {"larf_score": row["larf_score"] + 1})
    queue.push(rescored)
    again = records_of(queue)[ids[9]]
    assert "learned_score" not in again["metadata"]
    assert "After people" not in again["fields"]["evidence"]
