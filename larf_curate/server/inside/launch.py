"""Run argilla-server with SQLite, the embedded search engine and an in-process Redis."""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

EXIT_NOT_STARTED = 1
EXIT_HOME_TAKEN = 97
EXIT_PORT_TAKEN = 98
_LOCK_PATIENCE = 5.0


def main() -> None:
    """Serve one home until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--port", required=True, type=int)
    told = parser.parse_args()
    os.umask(0o077)
    # uvicorn raises the signal again after its shutdown: this makes it end through the clean-up below
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lock = _hold(told.home / "running.lock")
    state = told.home / "server.json"
    state.unlink(missing_ok=True)
    listener = _listen(told.port)
    with _temporary_folder(told.home / "tmp"):
        try:
            _serve(told.home, listener, state)
        finally:
            state.unlink(missing_ok=True)
            os.close(lock)


def _serve(home: Path, listener: socket.socket, state: Path) -> None:
    credentials = json.loads((home / "credentials.json").read_text(encoding="utf-8"))
    _configure(home, credentials["auth_secret"])
    from . import jobs, logs

    logs.install()
    jobs.keep_redis_in_memory()
    # This imports argilla_server, which reads the environment and copies its static files at import.
    from argilla_server import app

    from . import accounts, database, engine, headers, speed

    database.set_pragmas()
    engine.register()
    speed.apply()
    database.upgrade(home / "argilla.db")
    asyncio.run(accounts.ensure(credentials["accounts"]))
    jobs.start_worker()

    import uvicorn

    page = headers.guarded(app, headers.policy(Path(tempfile.gettempdir()).rglob("*.html")))
    server = uvicorn.Server(uvicorn.Config(page, log_config=None))
    _write_state(state, listener.getsockname()[1])
    server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(EXIT_NOT_STARTED)


def _hold(path: Path) -> int:
    """Take the lock that says this home is served; whoever looks at it holds it for an instant, hence the patience."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + _LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SystemExit(EXIT_HOME_TAKEN) from None
            time.sleep(0.02)
        else:
            # a forked process must not keep the lock when this one is gone
            os.register_at_fork(after_in_child=lambda: os.close(handle))
            return handle


def _listen(port: int) -> socket.socket:
    """Bind the port before anything slow, so that a taken one is told at once."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        raise SystemExit(EXIT_PORT_TAKEN) from None
    return listener


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[None]:
    """Keep the copy of the web page that each import of argilla_server makes inside the home, and wipe it."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    tempfile.tempdir = str(path)
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _configure(home: Path, auth_secret: str) -> None:
    os.environ.update(
        ARGILLA_HOME_PATH=str(home),
        ARGILLA_SEARCH_ENGINE="embedded",
        ARGILLA_AUTH_SECRET_KEY=auth_secret,
        ARGILLA_DATABASE_SQLITE_TIMEOUT="30",
        ARGILLA_CORS_ORIGINS="[]",  # the web page comes from the same origin
        HF_HUB_DISABLE_TELEMETRY="1",  # else each request posts telemetry
    )


def _write_state(path: Path, port: int) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps({"pid": os.getpid(), "port": port}), encoding="utf-8")
    os.replace(aside, path)
