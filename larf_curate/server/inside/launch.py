"""Run argilla-server with SQLite, the embedded search engine and an emulated Redis."""

import argparse
import asyncio
import contextlib
import errno
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
from ipaddress import ip_address
from pathlib import Path

EXIT_NOT_STARTED = 1
EXIT_HOME_TAKEN = 97  # larf_curate.server.process maps these to messages
EXIT_PORT_TAKEN = 98
EXIT_NO_ADDRESS = 99
EXIT_NEWER_DATABASE = 100
_LOCK_TIMEOUT = 5.0  # seconds


def main() -> None:
    """Serve one home until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--address", required=True)
    parser.add_argument("--name", action="append", default=[], dest="names")
    arguments = parser.parse_args()
    os.umask(0o077)  # all files that the server creates are readable by their owner only
    # uvicorn raises the signal again after its shutdown: with this handler the clean-up below still runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lock = _acquire_lock(arguments.home / "running.lock")
    state = arguments.home / "server.json"
    state.unlink(missing_ok=True)
    listener = _listen(arguments.address, arguments.port)
    # Before anything slow: whoever started this process may be killed while it starts, and others must find it.
    _write_state(state, arguments.address, listener.getsockname()[1])
    with _temporary_folder(arguments.home / "tmp"):
        try:
            _serve(arguments.home, listener, arguments.names)
        finally:
            state.unlink(missing_ok=True)
            os.close(lock)


def _serve(home: Path, listener: socket.socket, names: list[str]) -> None:
    with open(os.open(home / "credentials.json", os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as stream:
        credentials = json.load(stream)
    _configure(home, credentials["auth_secret"])
    from . import jobs, logs

    logs.install()
    jobs.use_in_memory_redis()
    # Not earlier: on import, argilla_server reads the environment and copies its static files.
    from argilla_server import app

    from . import accounts, database, engine, headers, hosts, limits, privacy, sign_in, speed

    database.set_pragmas()
    engine.register()
    speed.apply()
    sign_in.apply()
    limits.apply()
    privacy.apply()
    try:
        database.upgrade(home / "argilla.db")
    except database.NewerDatabaseError:
        raise SystemExit(EXIT_NEWER_DATABASE) from None
    asyncio.run(accounts.ensure(credentials["accounts"]))
    jobs.start_worker()

    import uvicorn

    policy = headers.content_security_policy(Path(tempfile.gettempdir()).rglob("*.html"))
    public = not ip_address(listener.getsockname()[0]).is_loopback
    guarded = hosts.with_host_check(sign_in.with_client(app), hosts.allowed(names, public=public))
    # No headers of a proxy: anybody could give another address with each guess of a password.
    options = {"log_config": None, "proxy_headers": False}
    server = uvicorn.Server(uvicorn.Config(headers.with_security_headers(guarded, policy), **options))
    server.run(sockets=[listener])
    if not server.started:
        raise SystemExit(EXIT_NOT_STARTED)


def _acquire_lock(path: Path) -> int:
    """Acquire the lock that marks this home as served; returns its file descriptor.

    Processes that check the lock hold it for a moment, hence the retries.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise SystemExit(EXIT_HOME_TAKEN) from None
            time.sleep(0.02)
        else:
            # A forked child would inherit the lock and keep it after this process has exited.
            os.register_at_fork(after_in_child=lambda: os.close(handle))
            return handle


def _listen(address: str, port: int) -> socket.socket:
    """Bind the port, before anything slow, so that a port in use is reported at once."""
    try:
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # so that it takes IPv4, too
        listener.bind((address, port))
    except OSError as error:
        raise SystemExit(EXIT_PORT_TAKEN if error.errno == errno.EADDRINUSE else EXIT_NO_ADDRESS) from None
    return listener


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[None]:
    """Use a folder in the home for temporary files, and delete it at start and exit.

    Each import of argilla_server makes a copy of the web interface in the temporary folder and never deletes it.
    """
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
        ARGILLA_CORS_ORIGINS="[]",  # the web interface has the same origin
        HF_HUB_DISABLE_TELEMETRY="1",  # otherwise each request sends telemetry
    )


def _write_state(path: Path, address: str, port: int) -> None:
    """Write what identifies this process; `larf_curate.server.process` compares it with the running processes."""
    import psutil  # type: ignore[import-untyped, unused-ignore]

    boot_time = psutil.boot_time()
    started = psutil.Process().create_time() - boot_time
    state = {"pid": os.getpid(), "address": address, "port": port, "started": started}
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as stream:
        json.dump(state, stream)
    os.replace(temporary, path)
