"""Diagnose an embedded server, whether or not it runs, without changing anything, and mend its search index."""

import os
import shutil
import socket
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import quote

from larf_curate.errors import ReviewServerError
from larf_curate.server import api, process
from larf_curate.server.credentials import read_credentials, weak_passwords
from larf_curate.server.environment import ServerEnvironment
from larf_curate.server.home import ServerHome
from larf_curate.server.inside import store, text_index
from larf_curate.server.locks import is_locked

_MIN_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Args:
        name: What was checked.
        ok: Whether the check passed.
        found: What was found.
        remedy: How to fix it; empty if the check passed.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""


def run_checks(home: ServerHome, environment: Callable[[], ServerEnvironment], port: int) -> list[Check]:
    """Check everything that a server needs.

    Args:
        home: Folder of the server.
        environment: Returns its virtual environment; may raise `ReviewServerError` if there is no suitable Python.
        port: Port that it should listen on.

    Returns:
        One result per check, in the order in which failures should be fixed.
    """
    checks: dict[str, Callable[[], Check]] = {
        "environment": lambda: _environment(environment()),
        "home": lambda: _home(home),
        "disk": lambda: _disk(home),
        "credentials": lambda: _credentials(home),
        "process": lambda: _process(home),
        "port": lambda: _port(home, port),
        "network": lambda: _network(home),
        "database": lambda: _database(home),
        "search index": lambda: _search_index(home),
    }
    return [_catch_error(name, check) for name, check in checks.items()]


def _catch_error(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except ReviewServerError as error:
        found, _, remedy = str(error).partition(": ")  # messages have the form "problem: remedy"
        return Check(name, False, found, remedy)


def _environment(environment: ServerEnvironment) -> Check:
    name = "environment"
    if not environment.path.exists():
        return Check(name, True, f"not installed yet: the first start installs it in {environment.path}")
    remove = f"remove {environment.path}: the next start installs it again"
    if not environment.installed:
        return Check(name, False, "the install was interrupted", remove)
    try:
        versions = environment.versions()
    except ReviewServerError:
        return Check(name, False, "its Python interpreter does not run", remove)
    unexpected = [f"{package} {found or 'missing'}" for package, (pinned, found) in versions.items() if found != pinned]
    if unexpected:
        return Check(name, False, f"unexpected versions: {', '.join(unexpected)}", remove)
    return Check(name, True, ", ".join(f"{package} {pinned}" for package, (pinned, _) in versions.items()))


def _home(home: ServerHome) -> Check:
    if not home.path.exists():
        return Check("home", True, f"does not exist yet: the first start creates {home.path}")
    if not (home.path.is_dir() and os.access(home.path, os.R_OK | os.W_OK | os.X_OK)):
        return Check(
            "home", False, f"{home.path} is not writable", "change its owner, or choose another folder with --home"
        )
    if (problem := home.problem()) is not None:
        return Check("home", False, *problem)
    mode = stat.S_IMODE(home.path.stat().st_mode)
    if mode & 0o077:
        return Check(
            "home", False, f"{home.path} is accessible to other users (mode {mode:04o})", f"chmod 700 {home.path}"
        )
    return Check("home", True, str(home.path))


def _disk(home: ServerHome) -> Check:
    existing = next(path for path in (home.path, *home.path.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.1f} GB free"
    if free < _MIN_FREE_BYTES:
        return Check("disk", False, found, f"free at least {_MIN_FREE_BYTES / 1e9:.0f} GB on the disk of {existing}")
    return Check("disk", True, found)


def _credentials(home: ServerHome) -> Check:
    name, path = "credentials", home.credentials
    if not os.path.lexists(path):
        return Check(name, True, "none yet: the first start creates them")
    mode = stat.S_IMODE(path.stat(follow_symlinks=False).st_mode)
    if mode != 0o600:
        return Check(name, False, f"{path} has mode {mode:04o}", f"chmod 600 {path}")
    try:
        accounts = read_credentials(path).accounts
    except ReviewServerError:
        return Check(
            name,
            False,
            f"{path} cannot be read",
            "stop the server and remove the file: the next start creates new ones",
        )
    return Check(name, True, f"{len(accounts)} {'account' if len(accounts) == 1 else 'accounts'} in {path}, mode 0600")


def _process(home: ServerHome) -> Check:
    state = process.find_process(home)
    if state is None and is_locked(home.running_lock):  # the lock is acquired before the state is written
        return Check("process", False, "starting, or stuck while starting", f"wait a minute, then see {home.log}")
    if state is None:
        return Check("process", True, "not running")
    try:
        owner = read_credentials(home.credentials).owner
    except ReviewServerError:
        return Check(
            "process",
            False,
            f"process {state.pid} runs but its credentials cannot be read",
            "stop it and start it again",
        )
    if not (state.listens and api.is_answering(state.url, owner)):
        return Check(
            "process",
            False,
            f"process {state.pid} runs but does not respond at {state.url}",
            "stop it and start it again",
        )
    return Check("process", True, f"process {state.pid} responds at {state.url}")


def _port(home: ServerHome, port: int) -> Check:
    state = process.find_process(home)
    if state is not None:
        return Check("port", True, f"{state.port} is used by this server")
    if port == 0:
        return Check("port", True, "any free port")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        # As the server does: otherwise the port would seem taken for a minute after the server has stopped.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return Check(
                "port", False, f"{port} is used by another program", "end it, or choose another port with --port"
            )
    return Check("port", True, f"{port} is free")


def _network(home: ServerHome) -> Check:
    state = process.find_process(home)
    if state is None or not state.public_urls:
        return Check("network", True, f"{'listens' if state else 'would listen'} on this machine's own address only")
    found = f"other machines can sign in at {', '.join(state.public_urls)}, and nothing is encrypted"
    if weak := weak_passwords(read_credentials(home.credentials)):
        return Check("network", False, f"{found}; passwords of {', '.join(weak)} are short", "stop it with `down`")
    if others := _other_users(home):
        found = f"{found}; passwords of {', '.join(others)} were chosen on the page"
    return Check("network", True, found)


def _other_users(home: ServerHome) -> list[str]:
    """Names of the users that the credentials file does not have: somebody created them on the page or by the API."""
    known = {account.username for account in read_credentials(home.credentials).accounts}
    try:
        with closing(sqlite3.connect(f"file:{quote(str(home.database))}?mode=ro", uri=True, timeout=30)) as connection:
            users = {str(name) for (name,) in connection.execute("SELECT username FROM users")}
    except sqlite3.DatabaseError:  # see `_database`
        return []
    return sorted(users - known)


def _database(home: ServerHome) -> Check:
    name, path = "database", home.database
    if not path.exists():
        return Check(name, True, "none yet: the first start creates it")
    remedy = f"stop the server, then restore {path} from a backup, or move it away to start with an empty one"
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)) as connection:
            result = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if result != "ok":
                return Check(name, False, "damaged", remedy)
            records = connection.execute("SELECT count(*) FROM records").fetchone()[0]
    except sqlite3.DatabaseError as error:
        return Check(name, False, f"cannot be read ({type(error).__name__})", remedy)
    return Check(name, True, f"intact, {records} records, {path.stat().st_size / 1e6:.1f} MB")


def _search_index(home: ServerHome) -> Check:
    name = "search index"
    if not (home.database.exists() and home.search_index.exists()):
        return Check(name, True, "none yet: the first start creates it")
    mend = "run `larf-curate review doctor --mend`"
    try:
        with store.connect(home.path, read_only=True) as connection:
            counts = [index.lacking() for index in text_index.datasets(connection)]
    except sqlite3.DatabaseError as error:
        return Check(name, False, f"cannot be read ({type(error).__name__})", f"with an intact database, {mend}")
    lacking, lost = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    if lost:
        return Check(name, False, f"{lost} records are not found by any word", mend)
    if lacking:  # no fault: a server that was killed between a record and its index leaves it so
        return Check(name, True, f"lacks {lacking} records, which the next search in their dataset adds")
    return Check(name, True, f"complete for {len(counts)} datasets")


def mend_search_index(home: ServerHome) -> int:
    """Build the search index anew where it is damaged or lacks records; the server may run.

    Returns:
        Number of records that were lacking or lost.

    Raises:
        ReviewServerError: If Argilla's database or the index cannot be read.
    """
    if not home.database.exists():
        return 0
    try:
        if not is_locked(home.running_lock):  # else the running server has it open
            store.prepare(home.path)
        with store.connect(home.path) as connection:
            found = [(index, sum(index.lacking())) for index in text_index.datasets(connection)]
            for index in (index for index, lacking in found if lacking):
                index.rebuild()
    except sqlite3.DatabaseError as error:
        raise ReviewServerError(
            f"cannot build the search index of {home.path} anew ({type(error).__name__}): stop the server, try again"
        ) from error
    return sum(lacking for _, lacking in found)
