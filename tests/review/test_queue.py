import html
import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import argilla as rg
import pytest
from click.testing import CliRunner

from larf_curate.cli.review import review
from larf_curate.errors import InputError, ReviewError, ReviewServerError
from larf_curate.review import ReviewQueue
from larf_curate.review.argilla.connection import Connection
from larf_curate.review.argilla.settings import GUIDELINES
from larf_curate.scoring.selection import select
from tests.fixtures.review_rows import HOSTILE, questions, scored, selection


@pytest.fixture(scope="module")
def annotators(argilla_server):
    """HTTP clients of three annotators, by name."""
    accounts = {name: argilla_server.add_user(name) for name in ("ann", "bob", "cem")}
    clients = {
        name: rg.Argilla(api_url=argilla_server.url, api_key=account.api_key).http_client
        for name, account in accounts.items()
    }
    yield clients
    for client in clients.values():
        client.close()


def server_records(queue, *, include=""):
    path = f"/api/v1/datasets/{queue.dataset_id}/records?limit=1000{include}"
    items = queue._connection.request("GET", path)["items"]
    return {item["external_id"]: item for item in items}


def respond(client, queue, answers, *, status="submitted"):
    """Answer rows as the web page does: row id -> decision, or all values."""
    ids = {row_id: record["id"] for row_id, record in server_records(queue).items()}
    items = []
    for row_id, given in answers.items():
        values = given if isinstance(given, dict) else {"decision": given}
        values = {name: {"value": value} for name, value in values.items() if value is not None}
        items.append({"record_id": ids[row_id], "status": status, "values": values})
    reply = client.post("/api/v1/me/responses/bulk", json={"items": items}).json()
    assert [item["error"] for item in reply["items"]] == [None] * len(items)


def test_the_settings_are_those_a_reviewer_needs(queue):
    chosen = selection()
    queue.push(chosen)
    dataset = queue._connection.client.datasets(queue.name, workspace="argilla")
    settings = dataset.settings
    assert len(GUIDELINES) < 10_000
    assert settings.guidelines == GUIDELINES.strip()
    assert [(q.name, q.required) for q in settings.questions] == [
        ("decision", True),
        ("corrected_answer", False),
        ("category", False),
        ("severity", False),
        ("rationale", False),
    ]
    assert settings.questions["decision"].labels == ["keep", "remove", "edit", "unsure"]
    assert {field.name for field in settings.fields} == {"conversation", "evidence"}
    assert settings.fields["conversation"].use_markdown is False
    assert {m.name for m in settings.metadata} == {
        "larf_score",
        "machine_score",
        "percentile",
        "signal",
        "cluster",
        "in_words",
        "split",
        "status",
        "length",
    }
    assert [(vector.name, vector.dimensions) for vector in settings.vectors] == [("state", 8)]
    shown = server_records(queue, include="&include=suggestions")
    answers = dict(zip(chosen.flagged["larf_row_id"], chosen.flagged["answer"], strict=True))
    suggested = {row: [suggestion["value"] for suggestion in record["suggestions"]] for row, record in shown.items()}
    assert suggested == {row: [answer] for row, answer in answers.items()}, "only the answer, and no decision"


def test_pushing_again_changes_nothing_and_keeps_responses(queue, annotators):
    chosen = selection()
    first = queue.push(chosen)
    assert (first.pushed, first.updated, first.unchanged, first.failed) == (3, 0, 0, ())
    ids = list(chosen.flagged["larf_row_id"])
    respond(annotators["ann"], queue, {ids[0]: "remove"})
    before = server_records(queue, include="&include=responses")

    again = queue.push(chosen)
    assert (again.pushed, again.updated, again.unchanged) == (0, 0, 3)
    assert server_records(queue, include="&include=responses") == before
    assert list(before) == ids  # one record a row, under the row's id


def test_a_changed_score_updates_the_record_and_its_decision_stays(queue, annotators):
    chosen = selection()
    queue.push(chosen)
    ids = list(chosen.flagged["larf_row_id"])
    respond(annotators["ann"], queue, {ids[0]: "remove", ids[1]: "keep"})
    rescored = chosen.flagged.map(lambda row, i: {"larf_score": 9.0} if i == 0 else {}, with_indices=True)
    result = queue.push(rescored.select([0, 1]))
    assert (result.pushed, result.updated) == (0, 2)  # without a selection the layers are not known: both change
    assert server_records(queue)[ids[0]]["metadata"]["larf_score"] == 9.0
    decided = {row.row_id: row.decision for row in queue.pull().rows if row.status == "decided"}
    assert decided == {ids[0]: "remove", ids[1]: "keep"}


def test_a_push_that_was_cut_off_goes_on(queue, monkeypatch):
    rows = selection(questions(1100), flagged=1100)
    sent = []

    def upsert(self, body, original=Connection.send):
        sent.append(len(json.loads(body)["items"]))
        if len(sent) == 2:
            raise ReviewServerError("the line is cut")
        original(self._connection, "PUT", f"{self._path}/records/bulk", body)

    with monkeypatch.context() as patch:
        patch.setattr("larf_curate.review.argilla.dataset.RecordStore.upsert", upsert)
        with pytest.raises(ReviewServerError):
            queue.push(rows)
    result = queue.push(rows)
    assert sent == [500, 500]
    assert (result.pushed, result.unchanged) == (600, 500)
    assert sum(1 for _ in queue._store().records(responses=False)) == 1100


def test_hostile_rows_arrive_exactly_and_answers_come_back_exactly(queue, annotators):
    rows = [{"question": text + " asked", "answer": text} for text in HOSTILE.values()]
    chosen = selection([*rows, {"question": "nul \0", "answer": "half \ud800"[:5] + "\0"}], flagged=len(rows) + 1)
    assert queue.push(chosen).failed == ()
    records = server_records(queue)
    for row in chosen.flagged:
        shown = records[row["larf_row_id"]]["fields"]["conversation"]
        answer = "".join(html.unescape(m["content"]) for m in shown if m["role"].startswith("assistant"))
        assert answer == row["answer"].replace("\0", "␀")

    edits = {row["larf_row_id"]: {"decision": "edit", "corrected_answer": row["question"]} for row in chosen.flagged}
    edits = {row_id: values for row_id, values in edits.items() if "\0" not in values["corrected_answer"]}
    respond(annotators["ann"], queue, edits)
    outcome = queue.pull().apply(chosen)
    assert {row["larf_row_id"]: row["answer"] for row in outcome.kept} == {
        row_id: values["corrected_answer"] for row_id, values in edits.items()
    }
    assert len(outcome.withheld) == 1


def test_a_bad_record_stays_out_alone(queue, monkeypatch):
    chosen = selection(questions(40), flagged=40)
    bad = set(list(chosen.flagged["larf_row_id"])[7::13])
    from larf_curate.review.records.record import RecordMaker

    def spoil(self, row, original=RecordMaker.__call__):
        record = original(self, row)
        if row["larf_row_id"] in bad:
            record["fields"]["conversation"][0]["role"] = "r" * 21
        return record

    monkeypatch.setattr(RecordMaker, "__call__", spoil)
    result = queue.push(chosen)
    assert result.pushed == 40 - len(bad)
    assert {row_id for row_id, _ in result.failed} == bad
    assert all("20 characters" in reason and "plus one" not in reason for _, reason in result.failed)
    assert set(server_records(queue)) == set(chosen.flagged["larf_row_id"]) - bad


def test_rows_that_cannot_be_scored_are_in_the_queue(queue):
    rows = [*questions(2), {"question": None, "answer": None}]
    chosen = selection(rows, flagged=1, scores=[0.5, 0.1, None])
    assert queue.push(chosen).pushed == 2
    shown = server_records(queue)[chosen.flagged[1]["larf_row_id"]]
    assert shown["metadata"]["status"] == "malformed"
    assert "Not scored" in shown["fields"]["evidence"]


def test_worst_first_and_find_similar(queue):
    chosen = selection(questions(12), flagged=10)
    result = queue.push(chosen.flagged.shuffle(seed=1))
    assert result.url == (
        f"{queue._connection.url}/dataset/{queue.dataset_id}/annotation-mode"
        "?page=1&status=pending&sort=metadata.larf_score.desc"
    )
    search = f"/api/v1/me/datasets/{queue.dataset_id}/records/search"
    scope = {"entity": "metadata", "metadata_property": "larf_score"}
    found = queue._connection.request("POST", search, {"sort": [{"scope": scope, "order": "desc"}]})
    assert [item["record"]["external_id"] for item in found["items"]] == list(chosen.flagged["larf_row_id"])
    first = found["items"][0]["record"]["id"]
    vector = {"name": "state", "record_id": first, "max_results": 5}
    near = queue._connection.request("POST", search + "?limit=5", {"query": {"vector": vector}})
    assert len(near["items"]) == 5


def test_annotators_are_merged_and_the_outcome_holds_every_row(make_queue, annotators):
    queue = make_queue("three", min_submitted=3)
    chosen = selection(questions(9), flagged=6)
    queue.push(chosen)
    ids = list(chosen.flagged["larf_row_id"])
    better = {"decision": "edit", "corrected_answer": "better"}
    votes = {
        "ann": ["remove", "keep", "keep", better, "keep"],
        "bob": ["remove", "remove", "keep", better, "remove"],
        "cem": ["remove", "remove", "remove", better, "unsure"],
    }
    for name, given in votes.items():
        respond(annotators[name], queue, dict(zip(ids, given, strict=False)))
    respond(annotators["ann"], queue, {ids[5]: "remove"}, status="draft")

    def outcome(rule):
        made = queue.pull(merge=rule)
        return [(row.decision or row.status) for row in made.for_rows(chosen.flagged).rows], made.apply(chosen)

    majority, applied = outcome("majority")
    assert majority == ["remove", "remove", "keep", "edit", "conflict", "pending"]
    assert (len(applied.kept), len(applied.removed), len(applied.withheld)) == (5, 2, 2)
    assert [row["answer"] for row in applied.kept if row["larf_decision"] == "edit"] == ["better"]
    unanimous, applied = outcome("unanimous")
    assert unanimous == ["remove", "conflict", "conflict", "edit", "conflict", "pending"]
    assert len(applied.decisions.conflicts()) == 3
    assert outcome("arbiter:bob")[0] == ["remove", "remove", "keep", "edit", "remove", "pending"]

    state = queue.status()
    assert (state.rows, state.done, state.pending, state.drafts, state.disagreements) == (6, 5, 1, 1, 3)
    assert state.decisions == {"edit": 3, "keep": 4, "remove": 7, "unsure": 1}
    assert state.annotators == {"ann": 5, "bob": 5, "cem": 5}
    assert state.agreement.name == "krippendorff_alpha"
    assert state.decisions_per_hour > 0


def test_an_answer_to_an_earlier_text_is_stale_until_it_is_given_again(queue, annotators):
    chosen = selection()
    queue.push(chosen)
    ids = list(chosen.flagged["larf_row_id"])
    respond(annotators["ann"], queue, {ids[0]: "keep", ids[1]: "keep"})
    rewritten = chosen.flagged.map(lambda row, i: {"answer": "rewritten"} if i == 0 else {}, with_indices=True)
    queue.push(rewritten)
    statuses = {row.row_id: row.status for row in queue.pull().rows}
    assert (statuses[ids[0]], statuses[ids[1]]) == ("stale", "decided")
    assert queue.status().outdated == 1

    rescored = rewritten.map(lambda row, i: {"larf_score": 3.0} if i == 0 else {}, with_indices=True)
    queue.push(rescored)  # a later push does not forget it
    assert queue.status().outdated == 1
    respond(annotators["ann"], queue, {ids[0]: "keep"})
    assert {row.row_id: row.status for row in queue.pull().rows}[ids[0]] == "decided"
    assert queue.pull().for_rows([chosen.flagged[0]]).rows[0].status == "stale"  # for the old text it is not


@contextmanager
def answering(status, body):
    """A web server that gives every request the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_that_is_missing_down_or_another_is_named(argilla_server, monkeypatch):
    monkeypatch.delenv("ARGILLA_API_URL", raising=False)
    monkeypatch.delenv("ARGILLA_API_KEY", raising=False)
    monkeypatch.setattr("larf_curate.review.argilla.connection.FIRST_WAIT", 0.0)
    with pytest.raises(ReviewServerError, match="no Argilla address"):
        ReviewQueue()
    with pytest.raises(ReviewServerError, match="no Argilla key"):
        ReviewQueue(url=argilla_server.url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(ReviewServerError, match="no answer from"):
            ReviewQueue(url=f"http://127.0.0.1:{taken.getsockname()[1]}", api_key="k")
    with answering(200, b"<html>hello</html>") as url, pytest.raises(ReviewServerError, match="like an Argilla server"):
        ReviewQueue(url=url, api_key="k")
    with answering(503, b"busy") as url, pytest.raises(ReviewServerError, match="503"):
        ReviewQueue(url=url, api_key="k")


@pytest.mark.parametrize("key", ["two\nlines", "schl\u00fcssel", "with blank"])
def test_what_cannot_be_a_key_or_an_address_is_said_so(key):
    with pytest.raises(InputError, match="one line"):
        ReviewQueue("q", url="http://127.0.0.1:9", api_key=key)
    with pytest.raises(InputError, match="begins with http"):
        ReviewQueue("q", url="localhost:6900", api_key="key")


def test_a_key_file_must_hold_a_key(tmp_path):
    for content, said in ((b"\xff\xfe", "one line"), (b" \n", "is empty")):
        (tmp_path / "key").write_bytes(content)
        given = ["status", "--url", "http://127.0.0.1:9", "--api-key-file", str(tmp_path / "key")]
        done = CliRunner().invoke(review, given)
        assert isinstance(done.exception, InputError)
        assert said in str(done.exception)


def test_an_arbiter_nobody_knows_is_refused(queue):
    queue.push(selection(questions(2), flagged=2))
    with pytest.raises(InputError, match="wanted an arbiter among .*argilla.*, got 'nobody'"):
        queue.pull(merge="arbiter:nobody")


def test_decisions_are_not_written_over_a_selection(queue, tmp_path):
    chosen = selection(questions(3), flagged=2)
    chosen.save(tmp_path / "sel")
    queue.push(chosen)
    with pytest.raises(InputError, match="holds a selection"):
        queue.pull().apply(chosen).save(tmp_path / "sel")


def test_a_wrong_key_is_named_and_never_shown(argilla_server, queue):
    with pytest.raises(ReviewServerError, match="refuses the API key") as caught:
        ReviewQueue(url=argilla_server.url, api_key="secret-key")
    error = caught.value
    while error is not None:
        assert "secret-key" not in str(error)
        error = error.__cause__
    assert argilla_server.api_key not in repr(queue)


def test_an_annotators_key_and_a_missing_workspace_or_queue_are_refused(argilla_server, annotators, queue):
    key = annotators["ann"].headers["X-Argilla-Api-Key"]
    with ReviewQueue("forbidden", url=argilla_server.url, api_key=key) as theirs:
        with pytest.raises(ReviewServerError, match="owner or of an admin"):
            theirs.push(selection())
    with pytest.raises(ReviewServerError, match=r"no workspace 'nowhere'.*argilla"):
        ReviewQueue(workspace="nowhere", url=argilla_server.url, api_key=argilla_server.api_key)
    with pytest.raises(ReviewError, match="push a selection first"):
        queue.status()


def test_rows_without_ids_with_doubled_ids_or_of_another_model_are_refused(queue):
    with pytest.raises(InputError, match="no column larf_row_id"):
        queue.push(scored(questions(2)))
    with pytest.raises(InputError, match="not unique"):
        queue.push(scored(questions(2)).add_column("larf_row_id", ["a", "a"]))
    queue.push(selection())
    with pytest.raises(ReviewError, match="another model"):
        queue.push(selection(width=16))


def test_a_dataset_of_somebody_else_is_left_alone(queue):
    client = queue._connection.client
    fields, asked = [rg.TextField("text", client=client)], [rg.TextQuestion("q", client=client)]
    settings = rg.Settings(fields=fields, questions=asked)
    rg.Dataset(name=queue.name, workspace="argilla", settings=settings, client=client).create()
    with pytest.raises(ReviewError, match="not a review queue"):
        queue.push(selection())


def test_a_queue_whose_creation_was_cut_off_is_made_again(queue):
    body = {"name": queue.name, "workspace_id": queue._connection.workspace_id}
    queue._connection.request("POST", "/api/v1/datasets", body)
    assert queue.push(selection()).pushed == 3


def test_the_commands_push_show_and_pull(argilla_server, make_queue, annotators, tmp_path, monkeypatch):
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "home"))
    for name in ("ARGILLA_API_URL", "ARGILLA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    key, chosen = tmp_path / "key.txt", selection()
    key.write_text(argilla_server.api_key + "\n")
    chosen.save(tmp_path / "selection")
    server = ["--name", "commands", "--url", argilla_server.url, "--api-key-file", str(key)]

    def run(*arguments):
        result = CliRunner(catch_exceptions=False).invoke(review, [*map(str, arguments), *server])
        assert result.exit_code == 0, result.output
        assert argilla_server.api_key not in result.output
        return result.stdout

    pushed = json.loads(run("push", tmp_path / "selection", "--json"))
    assert (pushed["pushed"], pushed["failed"]) == (3, [])
    respond(
        annotators["bob"],
        make_queue("commands"),
        dict(zip(chosen.flagged["larf_row_id"], ("keep", "remove"), strict=False)),
    )
    assert json.loads(run("status", "--json"))["decisions"] == {"keep": 1, "remove": 1}
    assert "│ bob    │ 2       │" in run("status")
    counts = json.loads(run("pull", "-o", tmp_path / "decisions", "--json"))["counts"]  # the selection pushed last
    assert (counts["kept"], counts["removed"], counts["withheld"]) == (3, 1, 1)
    assert json.loads((tmp_path / "decisions" / "decisions.json").read_text())["counts"] == counts
    assert "removed" in run("pull", tmp_path / "selection", "-o", tmp_path / "again")
    server[2:] = ["--home", str(argilla_server.home.path)]  # without address and key: the embedded server
    assert json.loads(run("status", "--json"))["rows"] == 3


def test_the_columns_that_rows_were_scored_with_are_shown_and_edited_without_naming_them_again(queue, annotators):
    rows = [{"sys": "Be kind", "ask": f"Q{i}", "say": f"A{i}"} for i in range(4)]
    columns = {"system": "sys", "user": "ask", "assistant": "say"}
    chosen = select(scored(rows), top_k=1, scored={"source": {"columns": columns}})
    queue.push(chosen)
    [record] = server_records(queue).values()
    assert [turn["role"] for turn in record["fields"]["conversation"]] == ["system", "user", "assistant"]
    assert f"larf-curate preview SELECTION --row {record['external_id']}" in record["fields"]["evidence"]
    respond(annotators["ann"], queue, {record["external_id"]: {"decision": "edit", "corrected_answer": "Better"}})
    outcome = queue.pull().apply(chosen)
    assert outcome.counts["edited"] == 1
    assert [row["say"] for row in outcome.kept if row["larf_decision"] == "edit"] == ["Better"]
    applied = queue.pull().apply(chosen, columns={"user": "sys", "assistant": "ask"})
    assert [row["ask"] for row in applied.kept if row["larf_decision"] == "edit"] == ["Better"]
    queue.rerank(chosen, add=1)
    assert all(len(item["fields"]["conversation"]) == 3 for item in server_records(queue).values())
    queue.push(chosen, columns={"user": "sys", "assistant": "ask"})
    assert len(server_records(queue)[record["external_id"]]["fields"]["conversation"]) == 2
