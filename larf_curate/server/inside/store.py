"""The connection that the search reads through: the text index, with Argilla's database attached read-only."""

import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

_WAIT = 30.0
_VERSION = 1


@contextmanager
def connect(home: Path) -> Iterator[sqlite3.Connection]:
    """Open ``search.db`` with Argilla's tables attached; not one of Argilla's own connections.

    Borrowing from Argilla's pool inside a request, which already holds a connection, can deadlock.
    """
    uri = f"file:{quote(str(home / 'search.db'))}"
    with closing(sqlite3.connect(uri, uri=True, timeout=_WAIT, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("ATTACH DATABASE ? AS argilla", (f"file:{quote(str(home / 'argilla.db'))}?mode=ro",))
        connection.create_function("shuffled", 2, shuffled, deterministic=True)
        yield connection


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def prepare(home: Path) -> None:
    """Make the text index usable: one that is broken or of another version is thrown away, it fills itself again."""
    path = home / "search.db"
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            fit = version in (0, _VERSION) and connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
    except sqlite3.DatabaseError:
        fit = False
    if not fit:
        for rest in ("", "-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
    with closing(sqlite3.connect(path, timeout=_WAIT)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA user_version={_VERSION}")


def shuffled(seed: str, record_id: str) -> bytes:
    """A place in a random order that is a user's own and stays the same."""
    return hashlib.blake2b(record_id.encode(), key=seed.encode()[:64], digest_size=8).digest()
