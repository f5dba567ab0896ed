"""What one person may see, with real accounts: other workspaces, other people's answers, other people's keys."""

import pytest

from tests.fixtures.review_rows import questions, selection
from tests.fixtures.server_client import Client

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def clients(argilla_server):
    accounts = {
        "ann": argilla_server.add_user("ann"),
        "ben": argilla_server.add_user("ben"),
        "out": argilla_server.add_user("out", workspace="another"),
        "head": argilla_server.add_user("head", role="admin"),
    }
    return {name: Client(argilla_server.url, account.api_key) for name, account in accounts.items()}


@pytest.fixture
def record(queue, clients):
    """Id of a record that ann and ben have answered; without vectors, with which the server cannot show it."""
    rows = selection(questions(4), flagged=2).flagged.remove_columns("larf_state")
    queue.push(rows)
    found = next(queue._store().records(responses=False))["id"]
    for name, decision in (("ann", "keep"), ("ben", "remove")):
        values = {"decision": {"value": decision}, "rationale": {"value": f"secret of {name}"}}
        item = {"record_id": found, "status": "submitted", "values": values}
        (reply,) = clients[name].send("POST", "/me/responses/bulk", {"items": [item]})["items"]
        assert reply["error"] is None
    return found


def readable(dataset, record, workspace):
    """Requests that could show a queue, its records or its answers."""
    return {
        "record": ("GET", f"/records/{record}", None),
        "search": ("POST", f"/me/datasets/{dataset}/records/search?include=responses", {}),
        "search all": ("POST", f"/datasets/{dataset}/records/search?include=responses", {}),
        "list": ("GET", f"/datasets/{dataset}/records?include=responses", None),
        "dataset": ("GET", f"/datasets/{dataset}", None),
        "progress": ("GET", f"/datasets/{dataset}/users/progress", None),
        "members": ("GET", f"/workspaces/{workspace}/users", None),
        "users": ("GET", "/users", None),
    }


def asked(client, queue, record):
    requests = readable(queue.dataset_id, record, queue._connection.workspace_id)
    return {name: client.raw(*request) for name, request in requests.items()}


def test_an_annotator_sees_all_rows_of_the_workspace_and_own_answers_only(queue, clients, record):
    replies = asked(clients["ann"], queue, record)
    assert {name for name, reply in replies.items() if reply.ok} == {"record", "search", "dataset", "progress"}
    assert replies["search"].json()["total"] == 2  # also rows that are not assigned to them
    for name in ("record", "search"):
        assert "secret of ann" in replies[name].text
    assert not [name for name, reply in replies.items() if "secret of ben" in reply.text]
    assert clients["ann"].send("GET", f"/records/{record}")["responses"][0]["values"]["decision"] == {"value": "keep"}
    counts = {person["username"]: person for person in replies["progress"].json()["users"]}
    assert set(counts) == {"ann", "ben"}  # how much others have done is shown, not what


def test_an_annotator_cannot_change_what_others_answered_or_rows(queue, clients, record):
    all_answers = clients["head"].send("GET", f"/records/{record}")["responses"]
    theirs = next(answer for answer in all_answers if answer["values"]["decision"]["value"] == "remove")
    body = {"status": "submitted", "values": {"decision": {"value": "keep"}}}
    assert clients["ann"].raw("PUT", f"/responses/{theirs['id']}", body).status_code == 403
    assert clients["ann"].raw("DELETE", f"/responses/{theirs['id']}").status_code == 403
    assert clients["ann"].raw("PATCH", f"/records/{record}", {"metadata": {"assigned": ["ann"]}}).status_code == 403
    assert clients["ann"].raw("DELETE", f"/datasets/{queue.dataset_id}").status_code == 403


def test_who_is_in_another_workspace_sees_nothing_of_the_queue(queue, clients, record):
    replies = asked(clients["out"], queue, record)
    assert {reply.status_code for reply in replies.values()} == {403}
    assert clients["out"].send("GET", "/me/datasets")["items"] == []
    item = {"record_id": record, "status": "submitted", "values": {"decision": {"value": "keep"}}}
    (reply,) = clients["out"].send("POST", "/me/responses/bulk", {"items": [item]})["items"]
    assert reply["error"]
    assert set(queue.status().annotators) == {"ann", "ben"}


def test_an_admin_sees_all_answers_of_the_workspace_and_nobodys_key(argilla_server, queue, clients, record):
    replies = asked(clients["head"], queue, record)
    assert {name for name, reply in replies.items() if not reply.ok} == {"users"}
    assert "secret of ben" in replies["list"].text
    assert clients["head"].raw("PATCH", f"/records/{record}", {"metadata": {"split": "x"}}).ok
    keys = {user["username"]: user["api_key"] for user in replies["members"].json()["items"]}
    assert keys["argilla"] == keys["ann"] == ""
    assert keys["head"] == clients["head"].key
    ids = {user["username"]: user["id"] for user in replies["members"].json()["items"]}
    argilla_server.add_user("leaver")
    members = f"/workspaces/{queue._connection.workspace_id}/users"
    ids = {user["username"]: user["id"] for user in clients["head"].send("GET", members)["items"]}
    assert clients["head"].send("DELETE", f"{members}/{ids['leaver']}")["api_key"] == ""
    assert Client(argilla_server.url, argilla_server.api_key).send("GET", members)["items"][0]["api_key"]
