"""Argilla's SQLite database: its settings, and the migration of its schema."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any


class NewerDatabaseError(Exception):
    """The schema of the database is none of those that the installed version of Argilla knows."""


def set_pragmas() -> None:
    """Make every connection use a write-ahead log: readers do not wait, and ``kill -9`` loses no committed response."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def pragmas(connection: Any, _record: Any) -> None:  # noqa: ANN401  any DBAPI connection
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    event.listen(Engine, "connect", pragmas)


def upgrade(path: Path) -> None:
    """Migrate the schema to the installed version of Argilla.

    A database of an older version is first copied to ``argilla.db.before-REVISION`` in the same folder.

    Args:
        path: The database; created if it does not exist.

    Raises:
        NewerDatabaseError: If a newer version of Argilla has migrated it; it is not changed.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from argilla_server.database import ALEMBIC_CONFIG_FILE

    # Not `Config(ALEMBIC_CONFIG_FILE)`: with a file name, alembic replaces our logging configuration.
    config = Config()
    config.set_main_option("script_location", str(Path(ALEMBIC_CONFIG_FILE).parent / "alembic"))
    scripts = ScriptDirectory.from_config(config)
    head, current = scripts.get_current_head(), _revision(path)
    if current is not None and current not in {script.revision for script in scripts.walk_revisions()}:
        raise NewerDatabaseError
    if current not in (None, head):
        _copy(path, path.with_name(f"{path.name}.before-{head}"))
    if current != head:
        command.upgrade(config, "head")
    with closing(sqlite3.connect(path)) as connection:
        # With it, `TextIndex` finds out whether records have changed without reading them all.
        connection.execute("CREATE INDEX IF NOT EXISTS larf_records_changed ON records (dataset_id, updated_at)")
        connection.commit()


def _revision(path: Path) -> str | None:
    """Schema revision of the database; None if it is new."""
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None


def _copy(path: Path, target: Path) -> None:
    # SQLite's backup instead of a copy of the file, which would miss what is still in the write-ahead log.
    with closing(sqlite3.connect(path)) as source_connection, closing(sqlite3.connect(target)) as target_connection:
        source_connection.backup(target_connection)
