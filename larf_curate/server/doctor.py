"""What is wrong with an embedded server, found from outside: it need not run, and nothing is changed."""

import os
import shutil
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import quote

from larf_curate.errors import ReviewServerError
from larf_curate.server import api, process
from larf_curate.server.credentials import read_credentials
from larf_curate.server.environment import ServerEnvironment
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import is_locked

_DISK_WANTED = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: What it is.
        ok: Whether it is as it should be.
        found: What was seen.
        remedy: What to do about it; empty if it is well.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine(home: ServerHome, environment: Callable[[], ServerEnvironment], port: int) -> list[Check]:
    """Look at everything a server needs.

    Args:
        home: Its home.
        environment: Gives its virtual environment; may fail for want of a Python.
        port: The port it is to listen on.

    Returns:
        One check each, in the order in which they should be put right.
    """
    looks = (
        lambda: _environment(environment()),
        lambda: _home(home),
        lambda: _disk(home),
        lambda: _credentials(home),
        lambda: _process(home),
        lambda: _port(home, port),
        lambda: _database(home),
    )
    return [check for look in looks for check in _guarded(look)]


def _guarded(look: Callable[[], Check]) -> Iterator[Check]:
    try:
        yield look()
    except ReviewServerError as error:
        found, _, remedy = str(error).partition(": ")
        yield Check("environment", False, found, remedy)


def _environment(environment: ServerEnvironment) -> Check:
    name = "environment"
    if not environment.path.exists():
        return Check(name, True, f"not installed yet: the first start installs it in {environment.path}")
    remove = f"remove {environment.path}: the next start installs it again"
    if not environment.whole:
        return Check(name, False, "the install was interrupted", remove)
    try:
        versions = environment.versions()
    except ReviewServerError:
        return Check(name, False, "its Python does not run", remove)
    wrong = [f"{package} {have or 'missing'}" for package, (wanted, have) in versions.items() if have != wanted]
    if wrong:
        return Check(name, False, f"unexpected versions: {', '.join(wrong)}", remove)
    return Check(name, True, ", ".join(f"{package} {wanted}" for package, (wanted, _) in versions.items()))


def _home(home: ServerHome) -> Check:
    if not home.path.exists():
        return Check("home", True, f"not there yet: the first start makes {home.path}")
    if not (home.path.is_dir() and os.access(home.path, os.R_OK | os.W_OK | os.X_OK)):
        return Check("home", False, f"{home.path} cannot be written", "make it yours, or choose another with --home")
    mode = stat.S_IMODE(home.path.stat().st_mode)
    if mode & 0o077:
        return Check("home", False, f"{home.path} is open to other users ({mode:04o})", f"chmod 700 {home.path}")
    return Check("home", True, str(home.path))


def _disk(home: ServerHome) -> Check:
    there = next(path for path in (home.path, *home.path.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free"
    if free < _DISK_WANTED:
        return Check("disk", False, found, f"free at least {_DISK_WANTED / 1e9:.0f} GB where {there} lies")
    return Check("disk", True, found)


def _credentials(home: ServerHome) -> Check:
    name, path = "credentials", home.credentials
    if not path.exists():
        return Check(name, True, "none yet: the first start makes them")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode != 0o600:
        return Check(name, False, f"{path} has mode {mode:04o}", f"chmod 600 {path}")
    try:
        accounts = read_credentials(path).accounts
    except ReviewServerError:
        return Check(
            name, False, f"{path} cannot be read", "stop the server and remove the file: a start makes new ones"
        )
    return Check(name, True, f"{len(accounts)} accounts in {path}, mode 0600")


def _process(home: ServerHome) -> Check:
    state = process.running(home)
    if state is None and is_locked(home.running_lock):
        return Check("process", False, "it is starting, or stuck while starting", f"wait a minute, then see {home.log}")
    if state is None:
        return Check("process", True, "not running")
    try:
        owner = read_credentials(home.credentials).owner
    except ReviewServerError:
        return Check(
            "process", False, f"{state.pid} runs but its credentials cannot be read", "stop it and start again"
        )
    if not api.answers(state.url, owner):
        return Check(
            "process", False, f"{state.pid} runs but does not answer at {state.url}", "stop it and start again"
        )
    return Check("process", True, f"{state.pid} answers at {state.url}")


def _port(home: ServerHome, port: int) -> Check:
    state = process.running(home)
    if state is not None:
        return Check("port", True, f"{state.port} is ours")
    if port == 0:
        return Check("port", True, "any free one")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Check("port", False, f"{port} is taken by another program", "end it, or choose another with --port")
    return Check("port", True, f"{port} is free")


def _database(home: ServerHome) -> Check:
    name, path = "database", home.database
    if not path.exists():
        return Check(name, True, "none yet: the first start makes it")
    remedy = f"stop the server, put a copy of your own in place of {path}, or move it away to begin anew"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)) as connection:
            verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if verdict != "ok":
                return Check(name, False, "it is damaged", remedy)
            records = connection.execute("SELECT count(*) FROM records").fetchone()[0]
    except sqlite3.DatabaseError as error:
        return Check(name, False, f"it cannot be read ({type(error).__name__})", remedy)
    return Check(name, True, f"whole, {records} records, {path.stat().st_size / 1e6:.1f} MB")
