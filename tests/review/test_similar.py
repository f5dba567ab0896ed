"""Find similar and groups of near-identical rows, through the real server, against numpy on the states."""

import html
import json
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from datasets import List, Value

from larf_curate.cli.review import review
from larf_curate.errors import InputError
from larf_curate.profile import cache_profile
from larf_curate.review import ReviewQueue
from larf_curate.review.decisions.outcome import Decisions
from tests.fixtures.review_rows import fake_profile, questions, selection, with_profile

WIDTH = 200


@pytest.fixture
def queue(argilla_server, request, tmp_path, monkeypatch):
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "home"))  # where profiles are kept
    with ReviewQueue(request.node.name, url=argilla_server.url, api_key=argilla_server.api_key) as made:
        yield made


@pytest.fixture(scope="module")
def annotator_key(argilla_server):
    return argilla_server.add_user("similar").api_key


def profile_states():
    """States with a large common part and directions of very different size, as models have."""
    draw = np.random.default_rng(5)
    sizes = 10 / (1 + np.arange(WIDTH)) ** 0.7
    return (draw.normal(size=(1, WIDTH)) * 20 + draw.normal(size=(400, WIDTH)) * sizes).astype(np.float32)


def with_states(chosen, states):
    column = states.astype(np.float16).tolist()
    flagged = chosen.flagged.remove_columns("larf_state")
    return replace(chosen, flagged=flagged.add_column("larf_state", column, feature=List(Value("float16"))))


@pytest.fixture(scope="module")
def profile():
    return fake_profile(profile_states()[:300])


@pytest.fixture
def chosen(profile):
    """100 flagged rows that name the profile as theirs."""
    made = with_states(selection(questions(100), flagged=100), profile_states()[300:])
    return with_profile(made, digest=profile.digest)


def most_similar(queue, row_id, count):
    records = {record["external_id"]: record["id"] for record in queue._store().records(responses=False)}
    vector = {"name": "state", "record_id": records[row_id], "max_results": count}
    path = f"/api/v1/me/datasets/{queue.dataset_id}/records/search?limit={count}"
    found = queue._connection.request("POST", path, {"query": {"vector": vector}})
    return [item["record"]["external_id"] for item in found["items"]]


def test_find_similar_gives_the_rows_that_numpy_finds_near(queue, profile, chosen):
    assert queue.push(chosen, profile=profile).pushed == 100
    ids = list(chosen.flagged["larf_row_id"])
    states = np.asarray(chosen.flagged["larf_state"][:], np.float64) - profile_states()[:300].mean(axis=0)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    cosines = states @ states.T
    np.fill_diagonal(cosines, -2)
    shared = []
    for row in range(0, 100, 4):
        near = [ids[i] for i in np.argsort(-cosines[row])[:10]]
        found = most_similar(queue, ids[row], 10)
        assert ids[row] not in found
        shared.append(len({*near} & {*found}) / 10)
    assert np.mean(shared) > 0.85


def test_the_profile_kept_on_this_machine_is_found(queue, profile, chosen):
    cache_profile(profile)
    queue.push(chosen)
    space = queue._store().vector_space()
    assert (space.name, space.dimensions) == (profile.digest[:12], 128)


def test_vectors_of_two_profiles_are_never_compared(queue, profile, chosen, caplog):
    queue.push(chosen)
    assert queue._store().vector_space().name == "random"
    few = replace(chosen, flagged=chosen.flagged.select(range(3)))
    queue.push(few, profile=profile)
    assert "find similar will leave these rows out" in caplog.text
    assert queue._store().vector_space().name == "random"
    assert queue.push(chosen, profile=profile).updated == 100  # all at once: the new vectors replace the old
    assert queue._store().vector_space().name == profile.digest[:12]
    assert queue.push(chosen, profile=profile).unchanged == 100


@pytest.fixture
def alike(chosen):
    """Six flagged rows: 0, 1 and 2 are near-identical (2 is a copy of 0), so are 3 and 4; 5 is alone."""
    rows = [
        {"question": f"q{n}", "answer": a} for n, a in ((0, "a"), (0, "a."), (0, "a"), (1, "b"), (1, "b!"), (2, "c"))
    ]
    made = with_states(selection(rows, flagged=6), chosen_states([0, 0, 0, 1, 1, 2]))
    return with_profile(made, digest=chosen.scored["profile"]["digest"])


def chosen_states(groups):
    noise = np.random.default_rng(1).normal(size=(len(groups), WIDTH)) * 0.02
    return profile_states()[300:][groups] + noise


def test_near_identical_rows_say_so_and_can_be_filtered(queue, profile, alike):
    assert queue.push(alike, profile=profile).grouped == 0
    records = {r["external_id"]: r for r in queue._store().records(responses=False)}
    ids = list(alike.flagged["larf_row_id"])
    clusters = [records[row]["metadata"].get("cluster") for row in ids]
    assert clusters == [ids[0][:12]] * 3 + [ids[3][:12]] * 2 + [None]
    assert "One of **3 near-identical rows**" in records[ids[1]]["fields"]["evidence"]
    scope = {"entity": "metadata", "metadata_property": "cluster"}
    body = {"filters": {"and": [{"type": "terms", "scope": scope, "values": [ids[3][:12]]}]}}
    found = queue._connection.request("POST", f"/api/v1/me/datasets/{queue.dataset_id}/records/search", body)
    assert {item["record"]["external_id"] for item in found["items"]} == set(ids[3:5])


def test_one_decision_serves_a_group_and_is_recorded_as_such(queue, profile, alike, annotator_key, tmp_path):
    pushed = queue.push(alike, profile=profile, group=True)
    assert (pushed.pushed, pushed.grouped) == (3, 3)
    ids = list(alike.flagged["larf_row_id"])
    records = {r["external_id"]: r for r in queue._store().records(responses=False)}
    assert set(records) == {ids[0], ids[3], ids[5]}
    assert "**Your decision applies to 3 near-identical rows**" in records[ids[0]]["fields"]["evidence"]
    assert queue.status().grouped == 3

    queue.submit({ids[0]: "remove"}, api_key=annotator_key)
    decided = {row.row_id: row for row in queue.pull().rows}
    assert [decided[row].status for row in ids] == ["decided"] * 3 + ["pending"] * 3
    assert [decided[row].decided_through for row in ids] == [None, ids[0], ids[0], None, None, None]
    outcome = queue.pull().apply(alike)
    assert set(outcome.removed["larf_row_id"]) == set(ids[:3])
    outcome.save(tmp_path / "decisions")
    assert Decisions.load(tmp_path / "decisions") == outcome.decisions

    changed = alike.flagged.map(lambda row, i: {"answer": "changed"} if i == 1 else {}, with_indices=True)
    late = queue.pull().apply(replace(alike, flagged=changed))
    assert [row.status for row in late.decisions.rows][:3] == ["decided", "stale", "decided"]


def test_a_row_that_somebody_judged_itself_keeps_that_judgement(queue, profile, alike, annotator_key):
    ids = list(alike.flagged["larf_row_id"])
    queue.push(alike, profile=profile)
    queue.submit({ids[0]: "remove", ids[1]: "keep"}, api_key=annotator_key)
    queue.push(alike, profile=profile, group=True)
    decided = {row.row_id: row for row in queue.pull().rows}
    assert [(decided[row].decision, decided[row].decided_through) for row in ids[:3]] == [
        ("remove", None),
        ("keep", None),
        ("remove", ids[0]),
    ]
    queue.push(alike, profile=profile)  # not grouped any more: the row waits for a decision of its own
    assert {row.row_id: row for row in queue.pull().rows}[ids[2]].status == "pending"


def test_the_command_groups_when_asked_and_names_the_exemplars(argilla_server, queue, profile, alike, tmp_path):
    from larf_curate.data.references import ReferenceSet

    references = ReferenceSet.load("builtin")
    described = {"source": "builtin", "digest": references.digest, "unsafe": 140, "safe": 140, "cut": {}}
    named = with_profile(alike, references=described)
    neighbors = [{"id": "reference-7", "label": "fraud", "cosine": 0.5}]
    flagged = named.flagged.map(lambda row: {"larf_neighbors": neighbors})
    replace(named, flagged=flagged).save(tmp_path / "selection")
    profile.save_pretrained(tmp_path / "profile")
    (tmp_path / "key").write_text(argilla_server.api_key)
    command = ["push", tmp_path / "selection", "--profile", tmp_path / "profile", "--group", "--json"]
    server = ["--name", queue.name, "--url", argilla_server.url, "--api-key-file", tmp_path / "key"]
    result = CliRunner(catch_exceptions=False).invoke(review, [*map(str, command), *map(str, server)])
    assert (json.loads(result.stdout)["pushed"], json.loads(result.stdout)["grouped"]) == (3, 3)
    shown = next(iter(queue._store().records(responses=False)))["fields"]["evidence"]
    assert references.unsafe[7]["prompt"] in html.unescape(shown)


def test_grouping_without_a_profile_is_refused_before_anything_is_sent(queue, alike):
    with pytest.raises(InputError, match="give profile="):
        queue.push(alike, group=True)
    listed = queue._connection.request("GET", "/api/v1/me/datasets")["items"]
    assert queue.name not in [item["name"] for item in listed]
