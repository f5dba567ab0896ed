"""Backups of a real server while people answer, started elsewhere, and homes of earlier and of later versions."""

import json
import os
import shutil
import signal
import sqlite3
import threading
import time
from contextlib import closing

import pytest
import requests
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.errors import ReviewServerError
from larf_curate.review import ReviewQueue
from larf_curate.server import EmbeddedServer
from tests.fixtures.long import at_length
from tests.fixtures.make_backup import BACKUP, EXPECTED, decisions
from tests.fixtures.review_rows import questions, selection
from tests.fixtures.server_client import Client, Collection, owner_of

pytestmark = [pytest.mark.server, pytest.mark.slow]
ROWS = 400


def run(*arguments, home):
    """A review command of somebody whose data folder is ``home``."""
    result = CliRunner(env={"LARF_CURATE_HOME": str(home)}).invoke(main, ["review", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def collection(server, name):
    owner = owner_of(server)
    (found,) = [item["id"] for item in owner.send("GET", "/me/datasets")["items"] if item["name"] == name]
    return Collection(owner, found, {})


def records(made):
    """All records of a dataset by external id, with everything that the API shows of them."""
    found, offset = {}, 0
    path = f"/datasets/{made.id}/records"
    while items := made.owner.send("GET", path, limit=500, offset=offset, include="responses,suggestions,vectors")[
        "items"
    ]:
        found |= {item["external_id"]: item for item in items}
        offset += len(items)
    return found


def sign_in(server, account):
    form = {"username": account.username, "password": account.password}
    return requests.post(f"{server.url}/api/v1/token", data=form, timeout=60).status_code


def answering(client, made, ids, answered):
    """Answer one row after the other until the server is gone; what was acknowledged is in ``answered``."""
    for external, record in ids.items():
        item = {"record_id": record, "status": "submitted", "values": {"decision": {"value": "remove"}}}
        try:
            (done,) = client.send("POST", "/me/responses/bulk", {"items": [item]})["items"]
        except requests.RequestException:
            return
        assert done["error"] is None
        answered.append(external)


def submitted(made):
    return {external for external, record in records(made).items() if record["responses"]}


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory):
    """A running server with a pushed selection."""
    here = tmp_path_factory.mktemp("here")
    selection(questions(ROWS), flagged=ROWS).save(here / "selection")
    with EmbeddedServer(here / "argilla", port=0) as server:
        run("push", here / "selection", "--name", "larf-review", home=here)
        yield here, server


@at_length
@pytest.mark.timeout(600)
def test_a_backup_while_people_answer_has_every_acknowledged_answer_and_the_review_goes_on_elsewhere(
    reviewed, tmp_path
):
    here, server = reviewed
    made = collection(server, "larf-review")
    accounts = [server.credentials.owner, server.add_user("alice"), server.add_user("bob")]
    ids, threads, answered = made.ids(), [], {"alice": [], "bob": []}
    for account in accounts[1:]:
        client, done = Client(server.url, account.api_key), answered[account.username]
        threads.append(threading.Thread(target=answering, args=(client, made, ids, done)))
        threads[-1].start()
    backups = []
    while all(thread.is_alive() for thread in threads) and len(backups) < 3:
        time.sleep(0.7)
        before = {name: set(done) for name, done in answered.items()}
        told = json.loads(run("backup", tmp_path / f"{len(backups)}.zip", "--json", home=here).stdout)
        backups.append((before, {name: set(done) for name, done in answered.items()}, told["counts"]["responses"]))
        assert all(thread.is_alive() for thread in threads)  # it was a backup while people answer
    for thread in threads:
        thread.join()

    for number, (before, after, responses) in enumerate(backups):
        low, high = sum(map(len, before.values())), sum(map(len, after.values()))
        assert 0 < low <= responses <= high + 2  # and at most one answer of each whose response was still under way
        run("restore", tmp_path / f"{number}.zip", home=tmp_path / f"there{number}")
    before, after, _ = backups[-1]
    there = tmp_path / f"there{len(backups) - 1}"
    with EmbeddedServer(there / "argilla", port=0) as elsewhere:
        restored, original = records(collection(elsewhere, "larf-review")), records(made)
        users = {
            account.username: Client(elsewhere.url, account.api_key).send("GET", "/me")["id"] for account in accounts
        }
        for name in ("alice", "bob"):
            found = {x for x, record in restored.items() if users[name] in {r["user_id"] for r in record["responses"]}}
            assert before[name] <= found
            assert len(found - after[name]) <= 1
        for external, record in restored.items():
            responses = {response["id"]: response for response in original[external].pop("responses")}
            assert all(responses[response["id"]] == response for response in record.pop("responses"))
            moved = ("status", "updated_at")  # those of the original changed with later answers
            assert {key: value for key, value in record.items() if key not in moved} == {
                key: value for key, value in original[external].items() if key not in moved
            }
        assert [sign_in(elsewhere, account) for account in accounts] == [201, 201, 201]
        assert collection(elsewhere, "larf-review").text("plus") == set(restored)
        assert all(check.ok for check in elsewhere.doctor())


@at_length
def test_a_pull_from_the_restored_server_gives_the_same_decisions(reviewed, tmp_path):
    here, server = reviewed
    alice = Client(server.url, server.add_user("alice").api_key)
    made = collection(server, "larf-review")
    answering(alice, made, dict(list(made.ids().items())[:30]), [])
    run("backup", tmp_path / "b.zip", home=here)
    run("pull", "-o", tmp_path / "decisions", home=here)
    there = tmp_path / "there"
    run("restore", tmp_path / "b.zip", home=there)
    with EmbeddedServer(there / "argilla", port=0):
        run("pull", "-o", tmp_path / "again", home=there)  # the selection is the recorded one
    for name in ("decisions.json", "decisions.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "decisions" / name).read_bytes()


@at_length
def test_what_a_killed_server_had_acknowledged_is_in_a_backup_without_it(reviewed, tmp_path):
    here, server = reviewed
    with ReviewQueue("killed", url=server.url, api_key=server.api_key) as queue:
        queue.push(selection(questions(200), flagged=200))
    made, answered = collection(server, "killed"), []
    client = Client(server.url, server.add_user("carol").api_key)
    thread = threading.Thread(target=answering, args=(client, made, made.ids(), answered))
    thread.start()
    while len(answered) < 20:
        assert thread.is_alive()
    os.kill(server.status().pid, signal.SIGKILL)
    thread.join()
    assert (server.home.path / "argilla.db-wal").stat().st_size > 0  # what only the write-ahead log has
    run("backup", tmp_path / "b.zip", home=here)
    run("restore", tmp_path / "b.zip", home=tmp_path / "there")
    with EmbeddedServer(tmp_path / "there" / "argilla", port=0) as elsewhere:
        found = submitted(collection(elsewhere, "killed"))
    assert found >= set(answered)
    assert len(found) <= len(answered) + 1
    server.start()


@at_length
def test_a_server_killed_in_the_middle_of_a_pull_is_told_and_nothing_is_written(reviewed, tmp_path):
    here, server = reviewed
    pid = server.status().pid
    os.kill(pid, signal.SIGSTOP)  # it takes requests and does not answer, so that the kill is in the middle of one
    killing = threading.Timer(3, os.kill, (pid, signal.SIGKILL))
    killing.start()
    (tmp_path / "decisions").mkdir()
    arguments = ["review", "pull", here / "selection", "-o", tmp_path / "decisions", "--home", server.home.path]
    result = CliRunner().invoke(main, list(map(str, arguments)))
    killing.join()
    assert result.exit_code == 1
    assert "no answer from" in result.stderr
    assert "run the command again" in result.stderr
    assert not list((tmp_path / "decisions").iterdir())
    deadline = time.monotonic() + 30
    while server.status().running:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.start()
    run("pull", here / "selection", "-o", tmp_path / "decisions", "--home", server.home.path, home=here)
    assert json.loads((tmp_path / "decisions" / "decisions.json").read_text())


@pytest.fixture
def earlier(tmp_path):
    """A home as a server of an earlier version left it."""
    server = EmbeddedServer(tmp_path / "home", port=0)
    server.restore(BACKUP, queues=tmp_path / "queues")
    return server


@at_length
def test_a_review_of_an_earlier_version_goes_on_with_its_records_answers_and_accounts(earlier):
    with closing(sqlite3.connect(earlier.home.database)) as connection:
        texts = dict(connection.execute("SELECT external_id, fields FROM records"))
    accounts = earlier.credentials.accounts
    with earlier:
        assert not earlier.new_credentials
        assert decisions(earlier.url, earlier.api_key) == json.loads(EXPECTED.read_text())
        made = collection(earlier, "kept-review")
        assert {key: record["fields"] for key, record in records(made).items()} == {
            key: json.loads(fields) for key, fields in texts.items()
        }
        assert made.text("plus") == set(texts)
        assert [sign_in(earlier, account) for account in accounts] == [201] * 3
        assert all(check.ok for check in earlier.doctor())
        pending = next(key for key, row in json.loads(EXPECTED.read_text()).items() if not row["annotators"])
        bob = Client(earlier.url, accounts[2].api_key)
        answering(bob, made, {pending: made.ids()[pending]}, answered := [])
        assert answered == [pending]


@at_length
def test_a_database_of_a_newer_argilla_is_refused_and_not_changed(earlier, tmp_path):
    with closing(sqlite3.connect(earlier.home.database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = 'f00000000001'")
    before = earlier.home.database.read_bytes()
    with pytest.raises(
        ReviewServerError, match="database was written by a newer version of Argilla: update larf-curate"
    ):
        earlier.start()
    assert earlier.home.database.read_bytes() == before
    assert not list(earlier.home.path.glob("argilla.db.before-*"))
    assert not earlier.status().running
    shutil.rmtree(earlier.home.path)
    earlier.restore(BACKUP, queues=tmp_path / "queues")
    with earlier:
        assert earlier.status().answering
