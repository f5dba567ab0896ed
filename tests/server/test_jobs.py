"""Background jobs, and that the server's speed patches change nothing that can be seen."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.fixtures.server_client import Client, labels, make_collection, owner_of


@pytest.fixture
def listener():
    """A web server that keeps the events it is sent."""
    events = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", events
    server.shutdown()
    server.server_close()
    thread.join()


def until(wanted, patience=30):
    deadline = time.monotonic() + patience
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_webhooks_hear_of_records_and_answers_while_they_are_enabled_and_only_then(argilla_server, listener):
    url, events = listener
    owner = owner_of(argilla_server)
    names = ["record.created", "record.updated", "record.completed", "response.created"]
    hook = owner.send("POST", "/webhooks", {"url": url, "events": names, "description": "x"})
    try:
        made = make_collection(argilla_server, fields={"text": "text"})
        made.push([{"external_id": "a", "fields": {"text": "new"}}])
        made.push([{"external_id": "a", "fields": {"text": "changed"}}])
        annotator = Client(argilla_server.url, argilla_server.add_user("hooked").api_key)
        answer(annotator, made.ids()["a"])
        until(lambda: {event["type"] for event in events} == set(names))
        assert {event["data"]["record"]["external_id"] for event in events if "record" in event["data"]} == {"a"}
        owner.send("PATCH", f"/webhooks/{hook['id']}", {"enabled": False})
        heard = len(events)
        made.push([{"external_id": "b", "fields": {"text": "unheard"}}])
        time.sleep(1)
        assert len(events) == heard
    finally:
        owner.send("DELETE", f"/webhooks/{hook['id']}")


def answer(annotator, record):
    item = {"record_id": record, "status": "submitted", "values": {"decision": {"value": "keep"}}}
    (done,) = annotator.send("POST", "/me/responses/bulk", {"items": [item]})["items"]
    assert done["error"] is None


def test_values_are_still_validated_by_each_propertys_own_settings(argilla_server):
    made = make_collection(
        argilla_server,
        fields={"text": "text"},
        questions={"decision": labels("keep", "remove"), "other": labels("yes", "no")},
        metadata={"score": "float", "count": "integer"},
    )
    path = f"/datasets/{made.id}/records/bulk"

    def status(**record):
        item = {"external_id": "a", "fields": {"text": "x"}, **record}
        return made.owner.raw("PUT", path, {"items": [item]}).status_code

    def suggested(question, value):
        return status(suggestions=[{"question_id": made.questions[question], "value": value}])

    assert status(metadata={"score": 0.5, "count": 2}) == 200
    assert status(metadata={"score": "a"}) == 422
    assert status(metadata={"count": 0.5}) == 422
    assert (suggested("decision", "keep"), suggested("decision", "yes")) == (200, 422)
    assert (suggested("other", "yes"), suggested("other", "keep")) == (200, 422)
