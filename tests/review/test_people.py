"""Rows assigned to people and conflicts sent to a third person, on the real server."""

import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from click.testing import CliRunner

from larf_curate.cli.review import review
from larf_curate.errors import InputError, ReviewServerError
from larf_curate.review import ReviewQueue
from tests.fixtures.long import at_length
from tests.fixtures.review_rows import questions, selection
from tests.fixtures.server_client import Client, terms

PEOPLE = ("alice", "bob", "eva.m@example.org", "dan")


@pytest.fixture(scope="module")
def accounts(argilla_server):
    return {name: argilla_server.add_user(name) for name in PEOPLE}


@pytest.fixture
def decide(argilla_server, accounts):
    """Lets a person decide rows of a queue, as the page does."""

    def decide(queue, name, decisions):
        queue.submit(decisions, api_key=accounts[name].api_key)

    return decide


def assigned(queue):
    return {record.row_id: set(record.assigned) for record in queue._records(queue._store())}


def open_rows(queue, server, account, term):
    """What the link of a person asks the server for: their pending records with the term, and no others."""
    client = Client(server.url, account.api_key)
    status = {"entity": "response", "property": "status"}
    filters = [
        terms(status, ["pending"]),
        terms({"entity": "record", "property": "status"}, ["pending"]),
        terms({"entity": "metadata", "metadata_property": "assigned"}, [term]),
    ]
    path = f"/me/datasets/{queue.dataset_id}/records/search"
    items = client.send("POST", path, {"filters": {"and": filters}}, limit=1000)["items"]
    return {item["record"]["external_id"] for item in items}


def drafts(queue, server, account, term):
    """What the link of a third person asks for."""
    filters = [
        terms({"entity": "response", "property": "status"}, ["draft"]),
        terms({"entity": "metadata", "metadata_property": "third_person"}, [term]),
    ]
    path = f"/me/datasets/{queue.dataset_id}/records/search"
    client = Client(server.url, account.api_key)
    items = client.send("POST", path, {"filters": {"and": filters}}, limit=1000)["items"]
    return {item["record"]["external_id"] for item in items}


def test_each_row_goes_to_two_of_three_and_each_link_asks_for_theirs(make_queue, argilla_server, accounts):
    queue = make_queue("assigned", min_submitted=2)
    queue.push(selection(questions(40), flagged=30))
    found = queue.assign(PEOPLE[:3])
    rows = assigned(queue)
    assert all(len(people) == 2 for people in rows.values())
    assert found.rows == Counter(name for people in rows.values() for name in people)
    assert sorted(found.rows.values()) == [20, 20, 20]
    assert (found.changed, found.short, found.per_row) == (30, 0, 2)
    for name, term in (("alice", "alice"), ("eva.m@example.org", "eva:m@example:org")):
        theirs = {row for row, people in rows.items() if name in people}
        assert open_rows(queue, argilla_server, accounts[name], term) == theirs
    assert "metadata=assigned.alice&" in found.links["alice"]
    assert "metadata=assigned.eva%3Am%40example%3Aorg&" in found.links["eva.m@example.org"]
    assert queue.links().rows == found.links


def test_a_repeated_push_keeps_people_and_answers_and_who_joins_gets_new_rows(make_queue, decide):
    queue = make_queue("joined", min_submitted=2)
    chosen = selection(questions(20), flagged=12)
    queue.push(chosen)
    queue.assign(PEOPLE[:2])
    first = assigned(queue)
    row = next(iter(first))
    decide(queue, "alice", {row: "keep"})
    rescored = chosen.flagged.map(lambda row: {"larf_score": row["larf_score"] + 1})
    assert queue.push(rescored).updated == 12  # an update replaces the metadata of a record
    assert assigned(queue) == first
    assert queue.assign(PEOPLE[:3]).changed == 0
    queue.push(selection(questions(24, start=100), flagged=10))
    found = queue.assign(PEOPLE[:3])
    after = assigned(queue)
    assert {row: after[row] for row in first} == first
    assert found.changed == 10
    assert found.rows["eva.m@example.org"] == 10
    assert queue.status().annotators == {"alice": 1}


def test_who_has_answered_before_is_among_the_people_and_finished_rows_stay(make_queue, decide):
    queue = make_queue("begun", min_submitted=2)
    queue.push(selection(questions(9), flagged=9))
    ids = list(assigned(queue))
    decide(queue, "alice", dict.fromkeys(ids[:6], "keep"))
    decide(queue, "dan", dict.fromkeys(ids[:4], "keep"))  # four are done, and dan is not among those asked
    queue.assign(PEOPLE[:3])
    rows = assigned(queue)
    assert [rows[row] for row in ids[:4]] == [set()] * 4
    assert all("alice" in rows[row] and len(rows[row]) == 2 for row in ids[4:6])
    state = queue.status()
    assert state.unassigned == 0


def test_answers_of_others_count_and_are_told(make_queue, decide):
    queue = make_queue("others", min_submitted=1)
    queue.push(selection(questions(6), flagged=4))
    queue.assign(["alice"])
    row = next(iter(assigned(queue)))
    decide(queue, "dan", {row: "remove"})
    people = {person.name: person for person in queue.status().people}
    assert (people["dan"].answered, people["dan"].unassigned, people["dan"].assigned) == (1, 1, 0)
    assert (people["alice"].assigned, people["alice"].left, people["alice"].unassigned) == (4, 3, 0)
    assert {d.row_id for d in queue.pull().rows if d.decision == "remove"} == {row}


def test_a_row_that_somebody_discards_goes_to_somebody_else(make_queue, argilla_server, accounts):
    queue = make_queue("discarded", min_submitted=1)
    queue.push(selection(questions(4), flagged=2))
    queue.assign(["alice"])
    (record, *_) = queue._store().records(responses=False)
    item = {"record_id": record["id"], "status": "discarded"}
    client = Client(argilla_server.url, accounts["alice"].api_key)
    client.send("POST", "/me/responses/bulk", {"items": [item]})
    assert queue.assign(["alice"]).short == 1
    found = queue.assign(["alice", "bob"])
    assert (found.changed, found.short) == (1, 0)
    assert assigned(queue)[record["external_id"]] == {"alice", "bob"}


def test_open_rows_of_a_deleted_account_go_to_others(make_queue, argilla_server, accounts):
    argilla_server.add_user("leaver")
    queue = make_queue("leaver", min_submitted=2)
    queue.push(selection(questions(12), flagged=9))
    queue.assign(["leaver", *PEOPLE[:2]])
    assert any("leaver" in people for people in assigned(queue).values())
    connection = queue._connection
    (gone,) = [name for name, user in connection.usernames().items() if user == "leaver"]
    connection.request("DELETE", f"/api/v1/users/{gone}")
    queue.assign(PEOPLE[:2])
    assert all(set(people) == set(PEOPLE[:2]) for people in assigned(queue).values())


def test_people_without_an_account_in_the_workspace_are_refused(make_queue, argilla_server, accounts):
    queue = make_queue("refused", min_submitted=2)
    queue.push(selection())
    argilla_server.add_user("stranger", workspace="elsewhere")
    with pytest.raises(InputError, match=r"got nobody, stranger: create accounts .* --workspace argilla"):
        queue.assign(["alice", "stranger", "nobody"])
    with pytest.raises(InputError, match="decided by 2: wanted as many people or more, got alice"):
        queue.assign(["alice"])
    with pytest.raises(InputError, match="each person once, got alice twice"):
        queue.assign(["alice", "alice"])
    with pytest.raises(InputError, match="got stranger"):
        queue.send_conflicts("stranger")
    assert set().union(*assigned(queue).values()) == set()


def conflicted(make_queue, decide, name, **given):
    """A queue of 8 rows, of which two people disagree on the first three, agree on two, and one has answered one."""
    queue = make_queue(name, min_submitted=2, **given)
    queue.push(selection(questions(12), flagged=8))
    queue.assign(["alice", "bob"])
    ids = list(assigned(queue))
    decide(queue, "alice", dict.fromkeys(ids[:6], "keep"))
    decide(queue, "bob", dict.fromkeys(ids[:3], "remove") | dict.fromkeys(ids[3:5], "keep"))
    return queue, ids


def test_a_third_person_gets_the_conflicts_and_nobody_elses_queue_changes(make_queue, decide, argilla_server, accounts):
    queue, ids = conflicted(make_queue, decide, "third")
    before = {name: open_rows(queue, argilla_server, accounts[name], name) for name in ("alice", "bob", "dan")}
    found = queue.send_conflicts("dan")
    assert (set(found.sent), found.answered, found.failed) == (set(ids[:3]), (), ())
    assert drafts(queue, argilla_server, accounts["dan"], "dan") == set(ids[:3])
    assert {n: open_rows(queue, argilla_server, accounts[n], n) for n in before} == before
    assert queue.links().conflicts == {"dan": found.url}
    state = queue.status()
    assert (state.done, state.drafts) == (5, 0)  # what was sent is no draft of anybody
    assert [(p.conflicts, p.conflicts_left) for p in state.people if p.name == "dan"] == [(3, 3)]
    assert {d.drafts for d in queue.pull().rows} == {0}

    decide(queue, "dan", {ids[0]: "remove", ids[1]: "keep"})
    assert drafts(queue, argilla_server, accounts["dan"], "dan") == {ids[2]}
    majority = {d.row_id: d for d in queue.pull().rows}
    assert [(majority[row].status, majority[row].decision) for row in ids[:3]] == [
        ("decided", "remove"),
        ("decided", "keep"),
        ("conflict", None),
    ]
    arbiter = {d.row_id: d.decision for d in queue.pull(merge="arbiter:dan").rows}
    assert [arbiter[row] for row in ids[:4]] == ["remove", "keep", None, "keep"]
    state = queue.status()
    assert [(p.conflicts, p.conflicts_left, p.unassigned) for p in state.people if p.name == "dan"] == [(3, 1, 0)]
    again = queue.send_conflicts("dan")
    assert (again.sent, again.answered) == ((ids[2],), ())


def test_an_answer_that_comes_first_is_not_replaced_by_a_draft(make_queue, decide, monkeypatch):
    queue, ids = conflicted(make_queue, decide, "raced")
    from larf_curate.review.people import third_person

    create = third_person._create_draft

    def late(person, record_id):
        """The person has the record open, and submits it just before."""
        if not late.done:
            late.done = True
            decide(queue, "dan", {ids[0]: "remove"})
        return create(person, record_id)

    late.done = False
    monkeypatch.setattr(third_person, "_create_draft", late)
    found = queue.send_conflicts("dan")
    assert (set(found.sent), found.answered, found.failed) == (set(ids[1:3]), (ids[0],), ())
    decided = {d.row_id: d for d in queue.pull().rows}
    assert (decided[ids[0]].decision, decided[ids[0]].annotators) == ("remove", ("alice", "bob", "dan"))


def test_who_has_answered_a_conflict_is_no_third_person(make_queue, decide):
    queue, ids = conflicted(make_queue, decide, "involved")
    found = queue.send_conflicts("alice")
    assert (found.sent, set(found.answered)) == ((), set(ids[:3]))


def test_rows_that_wait_for_answers_are_not_sent(make_queue, decide):
    queue = make_queue("waiting", min_submitted=3)
    queue.push(selection(questions(4), flagged=2))
    ids = list(assigned(queue))
    decide(queue, "alice", {ids[0]: "keep"})
    decide(queue, "bob", {ids[0]: "remove"})
    found = queue.send_conflicts("dan")
    assert (found.sent, found.waiting) == ((), 1)


def test_only_a_key_that_may_act_for_others_sends_conflicts(make_queue, decide, argilla_server):
    _, ids = conflicted(make_queue, decide, "admins")
    admin = argilla_server.add_user("chief", role="admin")
    with ReviewQueue("admins", url=argilla_server.url, api_key=admin.api_key) as queue:
        assert queue.status().disagreements == 3
        with pytest.raises(ReviewServerError, match="act for 'dan': use an owner's key"):
            queue.send_conflicts("dan")


@at_length
def test_six_people_at_once_decide_their_rows_and_no_decision_is_lost(make_queue, argilla_server):
    queue = make_queue("six", min_submitted=2)
    names = [f"six-{place}" for place in range(6)]
    people = {name: argilla_server.add_user(name) for name in names}
    queue.push(selection(questions(160), flagged=150))
    queue.assign(names)
    rows = assigned(queue)
    ids = {record["external_id"]: record["id"] for record in queue._store().records(responses=False)}
    given = {name: {} for name in names}

    def work(name):
        """Answer what the link shows, one row at a time, until it shows nothing."""
        client, rng = Client(argilla_server.url, people[name].api_key), random.Random(name)
        while left := open_rows(queue, argilla_server, people[name], name):
            row, decision = min(left), rng.choice(("keep", "remove"))
            item = {"record_id": ids[row], "status": "submitted", "values": {"decision": {"value": decision}}}
            (reply,) = client.send("POST", "/me/responses/bulk", {"items": [item]})["items"]
            assert reply["error"] is None
            given[name][row] = decision

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, names))
    assert {name: set(given[name]) for name in names} == {
        name: {row for row, people in rows.items() if name in people} for name in names
    }
    assert sum(map(len, given.values())) == 300
    reviewed = queue._records(queue._store())
    stored = {record.row_id: {j.annotator: j.decision for j in record.counted} for record in reviewed}
    assert stored == {row: {name: given[name][row] for name in people} for row, people in rows.items()}
    state = queue.status()
    assert (state.done, {p.name: (p.answered, p.left, p.unassigned) for p in state.people}) == (
        150,
        dict.fromkeys(names, (50, 0, 0)),
    )


def run(server, *arguments, code=0):
    given = [*arguments, "--home", str(server.home.path)]
    done = CliRunner(env={"ARGILLA_API_KEY": None}).invoke(review, given)
    assert done.exit_code == code, (done.output, done.exception)
    return done


def test_push_assigns_and_status_and_links_tell_each_person(argilla_server, accounts, decide, make_queue, tmp_path):
    selection(questions(30), flagged=24).save(tmp_path / "sel")
    sel, name = str(tmp_path / "sel"), ["--name", "by-command"]
    pushed = run(argilla_server, "push", sel, *name, "--annotators", "2", "--assign", "alice, bob,dan", "--json").stdout
    result = json.loads(pushed)["assigned"]
    assert result["rows"] == {"alice": 16, "bob": 16, "dan": 16}
    queue = make_queue("by-command")
    rows = assigned(queue)
    for place, (row, people) in enumerate(rows.items()):
        for person in people:
            decide(queue, person, {row: "remove" if place < 4 and person == max(people) else "keep"})
    shown = run(argilla_server, "status", *name).stdout
    assert "People, and their agreement with the others" in shown
    assert "alpha│-" in shown.replace(" ", "")  # of 4 rows, it would be arbitrary for all as for each
    state = json.loads(run(argilla_server, "status", *name, "--json").stdout)
    assert [(p["name"], p["assigned"], p["left"], p["answered"]) for p in state["people"]] == [
        (person, 16, 0, 16) for person in ("alice", "bob", "dan")
    ]
    assert state["agreement_by_decision"]["remove"] == {"rows": 4, "share": 0.0, "coefficient": None}
    assert "remove │ 4           │ 0%    │ -" in shown
    links = json.loads(run(argilla_server, "links", *name, "--json").stdout)
    assert links == {"queue": "by-command", "rows": result["links"], "conflicts": {}}
    assert f"alice: {result['links']['alice']}" in run(argilla_server, "links", *name).stdout
    argilla_server.add_user("judge")
    sent = run(argilla_server, "conflicts", *name, "--to", "judge").stdout
    assert "judge decides them here: http" in sent
    assert "judge: 4 conflicts as third person, 4 left" in run(argilla_server, "status", *name).stdout
    assert set(json.loads(run(argilla_server, "links", *name, "--json").stdout)["conflicts"]) == {"judge"}


def test_another_number_of_people_than_the_queue_has_is_refused_before_anything_is_pushed(
    argilla_server, accounts, make_queue, tmp_path
):
    selection(questions(6), flagged=4).save(tmp_path / "sel")
    sel, name = str(tmp_path / "sel"), ["--name", "two-each"]
    done = run(argilla_server, "push", sel, *name, "--annotators", "3", "--assign", "alice,bob", code=1)
    assert "decided by 3: wanted as many people in --assign" in str(done.exception)
    assert make_queue("two-each").annotators_per_row() is None
    run(argilla_server, "push", sel, *name, "--annotators", "2", "--quiet")
    done = run(argilla_server, "push", sel, *name, "--annotators", "3", code=1)
    assert "decided by 2, wanted 3" in str(done.exception)
    done = run(argilla_server, "push", sel, *name, "--assign", "alice", code=1)
    assert "decided by 2" in str(done.exception)
    assert (
        "wanted user names separated by commas"
        in run(argilla_server, "push", sel, *name, "--assign", "alice,,bob", code=2).output
    )
