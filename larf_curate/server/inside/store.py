"""Connections for searching: to the text index (``search.db``), with Argilla's database attached read-only."""

import hashlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

_TIMEOUT = 30.0  # seconds to wait for a lock of the database
_VERSION = 1


class DataVersion:
    """Tells whether anything was committed to Argilla's database; thread-safe.

    Args:
        home: Folder of the database.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def read(self) -> int:
        """A number that differs from that of an earlier call if and only if another connection has committed since."""
        with self._lock:  # one connection for all threads: numbers of different connections cannot be compared
            if self._connection is None:
                uri = f"file:{quote(str(self._home / 'argilla.db'))}?mode=ro"
                self._connection = sqlite3.connect(uri, uri=True, timeout=_TIMEOUT, check_same_thread=False)
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])


@contextmanager
def connect(home: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """Open ``search.db`` with Argilla's database attached as ``argilla``.

    This is a separate connection: a request already holds one from Argilla's pool, and requests that wait for a second
    one can deadlock.

    Args:
        home: Folder of the databases.
        read_only: Whether the index must exist, and is not changed.
    """
    uri = f"file:{quote(str(home / 'search.db'))}{'?mode=ro' if read_only else ''}"
    with closing(sqlite3.connect(uri, uri=True, timeout=_TIMEOUT, isolation_level=None)) as connection:
        if not read_only:
            connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("ATTACH DATABASE ? AS argilla", (f"file:{quote(str(home / 'argilla.db'))}?mode=ro",))
        connection.create_function("shuffle_key", 2, shuffle_key, deterministic=True)
        yield connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run a ``with`` block as one write transaction, rolled back on error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def prepare(home: Path) -> None:
    """Create the text index if needed; one that is corrupt or of another version is deleted first.

    Nothing is lost by that: each search brings the index up to date with Argilla's records.
    """
    path = home / "search.db"
    try:
        with closing(sqlite3.connect(path, timeout=_TIMEOUT)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            usable = version in (0, _VERSION) and connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
    except sqlite3.DatabaseError:
        usable = False
    if not usable:
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    with closing(sqlite3.connect(path, timeout=_TIMEOUT)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA user_version={_VERSION}")


def shuffle_key(seed: str, record_id: str) -> bytes:
    """Sort key of a record in a random order that depends only on the seed (8 bytes)."""
    return hashlib.blake2b(record_id.encode(), key=seed.encode()[:64], digest_size=8).digest()
