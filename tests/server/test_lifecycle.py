"""One embedded server through its life: started, killed, started again, stopped."""

import json
import os
import random
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import requests

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.review import ReviewQueue
from larf_curate.server import EmbeddedServer
from larf_curate.server import process as module
from larf_curate.server.locks import is_locked
from tests.fixtures.long import at_length
from tests.fixtures.review_rows import questions, selection
from tests.fixtures.server_client import Client, make_collection, owner_of

pytestmark = [pytest.mark.server, pytest.mark.slow]
SECRET = "a row nobody may find in a log"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of this module's own, because it is killed here."""
    with EmbeddedServer(tmp_path_factory.mktemp("life"), port=0) as started:
        yield started


def test_it_answers_on_the_loopback_address_only(server):
    assert server.url.startswith("http://127.0.0.1:")
    assert server.status().answering
    port = int(server.url.rsplit(":", 1)[1])
    for address in {"127.0.0.2", *own_addresses()}:
        with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
            probe.connect((address, port))


def own_addresses():
    """Addresses of this machine beside the loopback's."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    except socket.gaierror:  # a name that nothing resolves
        return set()
    return {address for address in found if not address.startswith("127.")}


def test_the_web_page_is_argillas_own(server):
    page = requests.get(server.url, timeout=30)
    assert page.ok
    assert "Argilla" in page.text


def test_secrets_are_random_closed_to_others_and_let_in(server):
    kept = server.home.credentials
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.home.path.stat().st_mode) == 0o700
    owner = server.credentials.owner
    assert len(owner.password) >= 20
    assert len(owner.api_key) >= 64
    assert owner.password not in repr(owner) + repr(server.credentials)
    form = {"username": owner.username, "password": owner.password}
    assert requests.post(f"{server.url}/api/v1/token", data=form, timeout=30).status_code == 201
    form["password"] = "12345678"
    assert requests.post(f"{server.url}/api/v1/token", data=form, timeout=30).status_code == 401


def test_a_second_start_finds_the_first(server):
    other = EmbeddedServer(server.home.path, port=0)
    assert other.start() == server.url
    assert not other.started_here
    assert not other.new_credentials


def test_a_port_that_is_taken_is_told_at_once(server, tmp_path):
    port = int(server.url.rsplit(":", 1)[1])
    other = EmbeddedServer(tmp_path / "other", port=port)
    with pytest.raises(ReviewServerError, match=f"port {port} on 127.0.0.1 is taken"):
        other.start()
    assert not other.status().running
    assert not other.started_here


def test_a_user_is_added_once_and_joins_workspaces(server):
    account = server.add_user("alice", workspace="second")
    assert server.add_user("alice") == account
    assert server.credentials.account("alice") == account
    spaces = Client(server.url, account.api_key).send("GET", "/me/workspaces")["items"]
    assert {space["name"] for space in spaces} == {"argilla", "second"}
    for name in ("", "a b", "../x", "x" * 65, "<b>"):
        with pytest.raises(InputError, match="user name"):
            server.add_user(name)


def test_a_rejected_record_and_a_search_leave_no_text_in_the_log(server):
    made = make_collection(server, fields={"text": "text"}, metadata={"score": "float"})
    for record in (
        {"external_id": "x", "fields": {"text": SECRET}, "metadata": {"score": SECRET}},
        {"external_id": "x", "fields": {"text": [SECRET]}},
        {"external_id": "x", "fields": {SECRET: SECRET}},
        {"external_id": {"y": SECRET}, "fields": SECRET},
    ):
        answer = made.owner.raw("PUT", f"/datasets/{made.id}/records/bulk", {"items": [record]})
        assert answer.status_code == 422
    made.owner.raw("GET", f"/datasets/{made.id}/records", metadata=SECRET, include=SECRET)
    made.push([{"external_id": "x", "fields": {"text": SECRET}}])
    made.text(SECRET)
    log = server.home.log.read_text()
    assert "RequestValidationError" in log
    assert "/records/bulk" in log
    for word in (SECRET, SECRET.replace(" ", "+"), SECRET.replace(" ", "%20"), server.api_key):
        assert word not in log
    assert server.credentials.owner.password not in log


def test_killed_in_the_middle_of_pushes_and_answers_it_loses_nothing_it_acknowledged(server):
    made = make_collection(server, fields={"text": "text"})
    records = [{"external_id": str(i), "fields": {"text": f"number {i}"}} for i in range(900)]
    made.push(records[:300])
    annotator = Client(server.url, server.add_user("killed").api_key)
    answered: list[str] = []
    pushing = threading.Thread(target=until_killed, args=(lambda: push_in_steps(made, records),))
    answering = threading.Thread(target=until_killed, args=(lambda: answer_all(annotator, made, answered),))
    pushing.start()
    answering.start()
    while len(answered) < 10:
        assert answering.is_alive()
    os.kill(server.status().pid, signal.SIGKILL)
    pushing.join()
    answering.join()
    until_gone(server)

    server.start()
    again = type(made)(owner_of(server), made.id, made.questions)
    again.push(records)
    assert again.owner.send("GET", f"/datasets/{made.id}/progress")["total"] == 900
    assert again.text("number") == {record["external_id"] for record in records}
    status = {"type": "terms", "scope": {"entity": "response", "property": "status"}, "values": ["submitted"]}
    assert again.only(status) >= set(answered)
    assert len(again.only(status)) <= len(answered) + 1
    assert all(check.ok for check in server.doctor())


def test_a_push_and_a_submit_that_a_kill_cut_off_are_completed_by_running_them_again(server):
    rows = selection(questions(800), flagged=800)
    ids = list(rows.flagged["larf_row_id"])
    decisions = dict.fromkeys(ids[:200], "remove")
    key = server.add_user("cut-off").api_key

    def until_killed_at(act, done, count):
        with ReviewQueue("cut-off", url=server.url, api_key=server.api_key) as queue, ThreadPoolExecutor(1) as thread:
            acting = thread.submit(act, queue)
            while done() < count:
                assert not acting.done()
            os.kill(server.status().pid, signal.SIGKILL)
            with pytest.raises(ReviewServerError):
                acting.result()
        until_gone(server)
        server.start()
        with ReviewQueue("cut-off", url=server.url, api_key=server.api_key) as queue:
            return act(queue), queue.pull()

    def progress(name):
        owner = owner_of(server)
        found = [item["id"] for item in owner.send("GET", "/me/datasets")["items"] if item["name"] == "cut-off"]
        return owner.send("GET", f"/datasets/{found[0]}/progress")[name] if found else 0

    result, pulled = until_killed_at(lambda queue: queue.push(rows), lambda: progress("total"), 500)
    assert result.failed == ()
    assert (result.pushed + result.unchanged, result.updated) == (800, 0)
    assert 500 <= result.unchanged < 800
    assert sorted(row.row_id for row in pulled.rows) == sorted(ids)

    _, pulled = until_killed_at(lambda queue: queue.submit(decisions, api_key=key), lambda: progress("completed"), 40)
    decided = [row for row in pulled.rows if row.status == "decided"]
    assert {row.row_id: row.decision for row in decided} == decisions
    assert all(row.annotators == ("cut-off",) for row in decided)
    assert all(check.ok for check in server.doctor())


@at_length
def test_a_search_after_kills_in_the_middle_of_pushes_finds_every_stored_record(server):
    made = make_collection(server, fields={"text": "text"})
    records = [{"external_id": str(i), "fields": {"text": f"number {i}"}} for i in range(1000)]
    rng = random.Random(0)
    for start in range(0, 1000, 200):
        path = f"/datasets/{made.id}/records/bulk"
        with ThreadPoolExecutor(3) as threads:
            batches = [{"items": records[place : place + 20]} for place in range(start, start + 200, 20)]
            pushing = [threads.submit(made.owner.raw, "PUT", path, batch) for batch in batches]
            for _ in range(rng.randrange(1, 9)):
                pushing.pop(0).result()
            os.kill(server.status().pid, signal.SIGKILL)
        until_gone(server)
        server.start()
        made = type(made)(owner_of(server), made.id, made.questions)
        stored = set(made.ids())
        assert len(stored) >= 20 * (start // 200 + 1)
        assert made.text("number") == stored
    made.push(records)
    assert made.text("number") == {record["external_id"] for record in records}


def lose(server, made, sql):
    """Change the search index of a dataset behind the back of the server."""
    with sqlite3.connect(server.home.search_index, timeout=30) as connection:
        changed = connection.execute(sql.format(made.id.replace("-", ""))).rowcount
    connection.close()
    return changed


def index_check(server):
    return next(check for check in server.doctor() if check.name == "search index")


def test_the_doctor_counts_the_records_that_the_index_lacks_and_mends_it(server):
    made = make_collection(server, fields={"text": "text", "more": "text"})
    made.push([{"external_id": str(i), "fields": {"text": f"number {i}", "more": "last"}} for i in range(435)])
    server.mend_search_index()  # what kills in other tests have left
    assert server.mend_search_index() == 0
    whole = index_check(server)
    assert whole.found.startswith("complete for ")
    server.stop()
    # As a kill between Argilla's commit and that of the index leaves it: 20 records have no entry, 3 an old one.
    assert lose(server, made, "DELETE FROM docs_{0} WHERE rowid <= 20") == 20
    assert lose(server, made, "UPDATE docs_{0} SET changed = 'before' WHERE rowid > 432") == 3
    check = index_check(server)
    assert (check.ok, check.found.split(",")[0]) == (True, "lacks 23 records")
    assert server.mend_search_index() == 23
    assert index_check(server) == whole

    # Entries without tokens, which no comparison of records shows.
    lose(server, made, "DELETE FROM texts_{0} WHERE rowid > 400")
    check = index_check(server)
    assert (check.ok, check.found) == (False, "35 records are not found by any word")
    assert "--mend" in check.remedy
    server.start()
    made = type(made)(owner_of(server), made.id, made.questions)
    assert len(made.text("number")) == 400
    assert server.mend_search_index() == 35  # while it runs
    assert index_check(server) == whole
    assert len(made.text("number")) == 435
    assert made.text("last", field="more") == made.text("number", field="text")
    assert made.text("number", field="more") == set()


def test_a_deleted_search_index_is_built_again_for_every_dataset(server):
    made = make_collection(server, fields={"text": "text"})
    made.push([{"external_id": str(i), "fields": {"text": f"number {i}"}} for i in range(30)])
    server.stop()
    server.home.search_index.write_bytes(b"not a database" * 1000)
    assert not index_check(server).ok
    assert server.mend_search_index() >= 30
    assert index_check(server).ok
    server.start()
    assert len(type(made)(owner_of(server), made.id, made.questions).text("number")) == 30


def until_gone(server):
    # A killed process closes its sockets a moment before its lock: callers may notice first.
    deadline = time.monotonic() + 30
    while server.status().running:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def until_killed(act):
    with pytest.raises(requests.ConnectionError):
        act()


def push_in_steps(made, records):
    for start in range(300, len(records), 20):
        made.push(records[start : start + 20])
    while True:
        made.push(records[:20])


def answer_all(annotator, made, answered):
    for external, record in made.ids().items():
        item = {"record_id": record, "status": "submitted", "values": {"decision": {"value": "keep"}}}
        (done,) = annotator.send("POST", "/me/responses/bulk", {"items": [item]})["items"]
        assert done["error"] is None
        answered.append(external)


def test_sign_ins_and_keys_survive_a_restart_and_no_copy_of_the_web_page_stays(server):
    owner = server.credentials.owner
    form = {"username": owner.username, "password": owner.password}
    token = requests.post(f"{server.url}/api/v1/token", data=form, timeout=30).json()["access_token"]
    (server.home.path / "tmp" / "left by a crash").mkdir()
    assert server.stop()
    assert not (server.home.path / "tmp").exists()
    assert not server.home.state.exists()
    assert not server.stop()
    with pytest.raises(ReviewServerError, match="review up"):
        _ = server.url
    server.start()
    assert not server.new_credentials
    bearer = {"Authorization": f"Bearer {token}"}
    assert requests.get(f"{server.url}/api/v1/me", headers=bearer, timeout=30).json()["username"] == "argilla"
    assert len(list((server.home.path / "tmp").iterdir())) == 1


def test_lost_credentials_are_made_anew_for_the_same_data(server):
    old = server.credentials.owner
    server.stop()
    server.home.credentials.unlink()
    server.start()
    new = server.credentials.owner
    assert new.api_key != old.api_key
    assert Client(server.url, new.api_key).send("GET", "/me/datasets")["items"]
    assert Client(server.url, old.api_key).raw("GET", "/me").status_code == 401
    form = {"username": new.username, "password": new.password}
    assert requests.post(f"{server.url}/api/v1/token", data=form, timeout=30).status_code == 201


def command_killed_while_starting(server, moment):
    """Run ``review up`` and kill it by SIGKILL as soon as the server has got so far."""
    command = [sys.executable, "-m", "larf_curate", "review", "up", "--home", str(server.home.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as up:
        while not moment(server):
            assert up.poll() is None
        up.kill()


MOMENTS = {
    "process": lambda server: module._server_of(server.home) is not None,
    "lock": lambda server: is_locked(server.home.running_lock),
    "state": lambda server: server.status().running,
}
EACH_MOMENT = [
    pytest.param(moment, id=name, marks=[] if name == "lock" else at_length) for name, moment in MOMENTS.items()
]


@pytest.mark.parametrize("moment", EACH_MOMENT)
def test_after_a_killed_up_another_up_takes_over_its_server_and_down_stops_it(tmp_path, moment):
    server = EmbeddedServer(tmp_path / "home", port=0)
    command_killed_while_starting(server, moment)
    url = server.start()
    assert server.status().answering
    assert server.url == url
    assert EmbeddedServer(server.home.path).start() == url
    assert server.stop()
    assert not server.status().running
    assert not server.stop()


@pytest.mark.parametrize("moment", EACH_MOMENT)
def test_after_a_killed_up_down_stops_its_server(tmp_path, moment):
    server = EmbeddedServer(tmp_path / "home", port=0)
    command_killed_while_starting(server, moment)
    assert server.stop()
    assert module._server_of(server.home) is None
    assert not server.status().running
    assert not server.stop()
    assert server.start()
    assert server.started_here
    assert server.stop()


def test_a_port_that_the_server_does_not_listen_on_is_sent_no_key(server):
    right = server.home.state.read_text()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        server.home.state.write_text(json.dumps(json.loads(right) | {"port": listener.getsockname()[1]}))
        assert not server.status().answering
        with pytest.raises(ReviewServerError, match="not ready"):
            _ = server.url
        assert not all(check.ok for check in server.doctor())
        with pytest.raises(TimeoutError):
            listener.accept()
    server.home.state.write_text(right)
    assert server.status().answering


DOWNGRADE = """
import os, sys
from pathlib import Path
os.environ["ARGILLA_HOME_PATH"] = sys.argv[1]
from alembic import command
from alembic.config import Config
from argilla_server.database import ALEMBIC_CONFIG_FILE
config = Config()
config.set_main_option("script_location", str(Path(ALEMBIC_CONFIG_FILE).parent / "alembic"))
command.downgrade(config, "-2")
"""


def test_a_database_of_an_older_argilla_is_copied_and_upgraded_with_all_its_data(server, tmp_path):
    made = make_collection(server, fields={"text": "text"}, vectors={"state": 2})
    made.push([{"external_id": "kept", "fields": {"text": "kept text"}, "vectors": {"state": [1, 0]}}])
    annotator = Client(server.url, server.add_user("old").api_key)
    values = {"decision": {"value": "remove"}}
    annotator.send("POST", f"/records/{made.ids()['kept']}/responses", {"values": values, "status": "submitted"})
    server.stop()
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    command = [str(server.environment.python), "-I", "-W", "ignore", "-c", DOWNGRADE, str(server.home.path)]
    subprocess.run(command, env=environ, check=True, capture_output=True)
    with closing(sqlite3.connect(server.home.database)) as connection:
        (older,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    server.start()
    with closing(sqlite3.connect(server.home.database)) as connection:
        (newest,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert newest != older
    with closing(sqlite3.connect(server.home.path / f"argilla.db.before-{newest}")) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (older,)
        assert connection.execute("SELECT count(*) FROM records WHERE external_id = 'kept'").fetchone() == (1,)
    again = type(made)(owner_of(server), made.id, made.questions)
    assert again.text("kept") == {"kept"}
    record = again.owner.send("GET", f"/datasets/{made.id}/records", include="responses")["items"][0]
    assert record["responses"][0]["values"] == values
    assert all(check.ok for check in server.doctor())
