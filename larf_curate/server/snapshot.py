"""A copy of Argilla's database at one moment, also while its server writes, and what a copied database has."""

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

from larf_curate.errors import ReviewServerError
from larf_curate.server.private_files import open_private

_COUNTED = ("datasets", "records", "responses", "users")


@dataclass(frozen=True)
class Content:
    """What a database has.

    Args:
        schema: Revision of its schema.
        counts: Number of datasets, records, responses and users.
        datasets: Ids of its datasets.
    """

    schema: str
    counts: dict[str, int]
    datasets: tuple[str, ...]


def copy_database(source: Path, target: Path) -> None:
    """Copy a database with everything that was committed, without making its server wait.

    Args:
        source: The database.
        target: The copy, one file with mode 0600; must not exist.

    Raises:
        ReviewServerError: If it cannot be copied.
    """
    os.close(open_private(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    try:
        with closing(_open(source)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)  # all pages in one step: in steps, each change of the database would begin it again
            copy.execute("PRAGMA journal_mode=DELETE")  # of a write-ahead log there would be a second file
    except sqlite3.Error as error:
        raise ReviewServerError(
            f"cannot copy {source} ({error}): free as much space as it has, and see `larf-curate review doctor`"
        ) from error


def inspect_database(path: Path, *, remedy: str) -> Content:
    """Check a copied database, and tell what it has.

    Raises:
        ReviewServerError: If it is damaged or not Argilla's; the remedy is the end of the message.
    """
    try:
        with closing(_open(path)) as copy:
            copy.execute("PRAGMA trusted_schema=OFF")
            (found,) = copy.execute("PRAGMA quick_check").fetchone()
            # Argilla's has none, and those of a foreign database would run within the server's statements.
            (foreign,) = copy.execute("SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()
            if found != "ok" or foreign:
                raise sqlite3.DatabaseError("it has triggers or views" if foreign else str(found))
            (schema,) = copy.execute("SELECT version_num FROM alembic_version").fetchone()
            counts = {table: copy.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in _COUNTED}
            datasets = [str(UUID(str(dataset))) for (dataset,) in copy.execute("SELECT id FROM datasets ORDER BY id")]
    except (sqlite3.Error, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ReviewServerError(f"the database is damaged or not one of Argilla ({reason}): {remedy}") from error
    return Content(str(schema), counts, tuple(datasets))


def _open(path: Path) -> sqlite3.Connection:
    """Open a database that is not changed."""
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=30)
