"""Which servers are reached through a proxy: never one on this machine, whose API key the proxy would learn."""

import json
import logging
import socket
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.review.argilla.connection import Connection, is_local
from larf_curate.server import api

KEY = "argilla.secretkey"
USER = {"id": "7a9a7e9a-0000-4000-8000-000000000001", "username": "maria", "role": "owner", "first_name": "Maria"}
DATES = {"inserted_at": "2026-01-01T00:00:00", "updated_at": "2026-01-01T00:00:00"}
SPACE = {"id": "7a9a7e9a-0000-4000-8000-000000000002", "name": "argilla", **DATES}
ANSWERS = {"/api/v1/me": {**USER, **DATES}, "/api/v1/me/workspaces": {"items": [SPACE]}}


class _Server6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


@contextmanager
def serving(answers, kind=ThreadingHTTPServer, address="127.0.0.1"):
    """A server that answers some paths and notes each request line and key; a proxy, if it answers none."""
    noted = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            noted.append((self.path, self.headers.get("X-Argilla-Api-Key")))
            body = json.dumps(answers.get(self.path, {})).encode()
            self.send_response(200 if self.path in answers else 502)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_CONNECT = do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = kind((address, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1], noted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://bob:SECRET@127.0.0.1:9", "http://127.0.0.1:9"),
        ("http://bob:SEC/RET@SECRET@127.0.0.1:9?token=SECRET", "http://127.0.0.1:9"),
        ("bob:SECRET@127.0.0.1:9#SECRET", "127.0.0.1:9"),
        ("http://127.0.0.1:9/x/?api_key=SECRET", "http://127.0.0.1:9/x/"),
    ],
)
def test_messages_have_no_password_of_the_address(address, shown):
    with pytest.raises((InputError, ReviewServerError)) as error:
        Connection(address, KEY, workspace="argilla", timeout=1)
    assert shown in str(error.value)
    assert "SEC" not in str(error.value)
    assert "RET" not in str(error.value)


def test_a_connection_leaves_the_log_handlers_of_the_caller_as_they_are(monkeypatch):
    own = logging.NullHandler()
    for handlers in ([], [own]):  # with none, Argilla's client adds one
        monkeypatch.setattr(logging.root, "handlers", list(handlers))
        with serving(ANSWERS) as (port, _):
            Connection(f"http://127.0.0.1:{port}", KEY, workspace="argilla", timeout=5).close()
        assert logging.root.handlers == handlers


def test_the_password_of_the_address_is_sent_and_not_shown():
    with serving(ANSWERS) as (port, noted):
        connection = Connection(f"http://bob:SECRET@127.0.0.1:{port}", KEY, workspace="argilla", timeout=5)
        try:
            assert noted
            assert connection.url == f"http://127.0.0.1:{port}"
            assert "SECRET" in connection.api_url
            with pytest.raises(ReviewServerError, match=f"^http://127.0.0.1:{port} ") as error:
                connection.request("GET", "/api/v1/nothing")
            assert "SECRET" not in str(error.value)
        finally:
            connection.close()


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that the environment names for everything, and its requests."""
    with serving({}) as (port, noted):
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            for spelling in (name, name.lower()):
                monkeypatch.setenv(spelling, f"http://127.0.0.1:{port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield noted


@pytest.fixture
def server():
    with serving(ANSWERS) as (port, noted):
        yield port, noted


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "LOCALHOST", "[::ffff:127.0.0.1]"])
def test_a_local_server_is_not_reached_through_a_proxy(proxy, server, host):
    port, noted = server
    url = f"http://{host}:{port}"
    with ExitStack() as stack:
        connection = Connection(url, KEY, workspace="argilla", timeout=5)
        stack.callback(connection.close)
        assert connection.request("GET", "/api/v1/me")["username"] == "maria"
    assert proxy == []
    assert [path for path, key in noted if key == KEY].count("/api/v1/me") >= 3


def test_a_local_server_with_an_address_of_version_6_is_not_reached_through_a_proxy(proxy):
    try:
        context = serving(ANSWERS, _Server6, "::1")
        port, _ = context.__enter__()
    except OSError:
        pytest.skip("this machine has no IPv6")
    Connection(f"http://[::1]:{port}", KEY, workspace="argilla", timeout=5).close()
    context.__exit__(None, None, None)
    assert proxy == []


def test_the_embedded_server_is_not_reached_through_a_proxy(proxy, server):
    port, _ = server
    assert api.call(f"http://127.0.0.1:{port}", KEY, "GET", "/me").json()["username"] == "maria"
    assert proxy == []


def test_another_server_is_reached_through_the_proxy_of_the_environment(proxy):
    with pytest.raises(ReviewServerError):
        Connection("http://argilla.example", KEY, workspace="argilla", timeout=5)
    assert proxy == [("http://argilla.example/api/v1/me", KEY)]


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:6900", True),
        ("http://localhost.:6900", True),
        ("https://argilla.localhost", True),
        ("http://127.8.9.1:1/path", True),
        ("http://2130706433", True),
        ("http://0.0.0.0:6900", True),
        ("http://[::]:6900", True),
        ("http://user:word@127.0.0.1", True),
        ("http://127.0.0.1.example.org", False),
        ("http://localhost.example.org", False),
        ("http://10.0.0.1", False),
        ("http://127.0.0.1@example.org", False),
    ],
)
def test_local_addresses(url, local):
    assert is_local(url) is local
