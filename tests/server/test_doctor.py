import socket
import sqlite3
from contextlib import closing

import pytest

from larf_curate.server import EmbeddedServer
from larf_curate.server import doctor as module
from larf_curate.server.credentials import ensure_credentials


@pytest.fixture
def server(tmp_path, argilla_server):
    """A home as a first start would leave it, without the start."""
    stopped = EmbeddedServer(tmp_path / "home", port=0)
    stopped.home.make()
    ensure_credentials(stopped.home.credentials)
    with closing(sqlite3.connect(stopped.home.database)) as database:
        database.execute("CREATE TABLE records (id TEXT)")
        database.executemany("INSERT INTO records VALUES (?)", [(str(place),) for place in range(5000)])
        database.commit()
    return stopped


def failed(server):
    return {check.name: check for check in server.doctor() if not check.ok}


def test_a_healthy_home_passes_every_check(server, argilla_server):
    names = ["environment", "home", "disk", "credentials", "process", "port", "network", "database", "search index"]
    assert [check.name for check in server.doctor()] == names
    assert failed(server) == {}
    assert failed(argilla_server) == {}
    found = {check.name: check.found for check in argilla_server.doctor()}
    assert argilla_server.url in found["process"]
    assert "used by this server" in found["port"]
    assert "5000 records" in {check.name: check.found for check in server.doctor()}["database"]


def test_nothing_is_wrong_before_the_first_start_and_nothing_is_made(tmp_path):
    server = EmbeddedServer(tmp_path / "new", port=0, environments=tmp_path / "environments")
    assert failed(server) == {}
    assert list(tmp_path.iterdir()) == []


def test_each_thing_that_is_wrong_is_named_with_a_remedy(server, monkeypatch):
    server.home.path.chmod(0o755)
    server.home.credentials.chmod(0o644)
    data = bytearray(server.home.database.read_bytes())
    data[6000:40000] = b"x" * 34000
    server.home.database.write_bytes(data)
    monkeypatch.setattr(module, "_MIN_FREE_BYTES", 10**18)
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        server.port = other.getsockname()[1]
        found = failed(server)
    assert set(found) == {"home", "credentials", "database", "disk", "port"}
    assert all(check.remedy for check in found.values())
    assert found["home"].remedy == f"chmod 700 {server.home.path}"
    assert found["credentials"].remedy == f"chmod 600 {server.home.credentials}"


def test_unreadable_files_are_failures_not_crashes(server, tmp_path):
    server.home.database.write_text("no database at all, but long enough to be read as one" * 100)
    server.home.credentials.write_text("{")
    assert set(failed(server)) == {"database", "credentials"}


def test_an_interrupted_install_is_found(tmp_path):
    server = EmbeddedServer(tmp_path / "home", port=0, environments=tmp_path / "environments")
    server.environment.path.mkdir(parents=True)
    assert "interrupted" in failed(server)["environment"].found
    server.environment.python.parent.mkdir()
    server.environment.python.write_text("#!/bin/sh\nexit 1\n")
    server.environment.python.chmod(0o755)
    (server.environment.path / "installed.json").touch()
    assert "does not run" in failed(server)["environment"].found
