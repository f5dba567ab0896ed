"""Full-text index: for each dataset an FTS5 table with one column per text field, and a table of the indexed records.

The index can be rebuilt at any time. Before each search it is compared with Argilla's records, and missing, outdated
and deleted records are corrected. So records are found even if a crash hits between Argilla's commit and ours.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .store import transaction
from .text_query import And, Not, Phrase, Query, tokenize

_BATCH_SIZE = 500


@dataclass(frozen=True)
class TextIndex:
    """The index of one dataset.

    Args:
        connection: From ``store.connect``.
        dataset: Id of the dataset, 32 hex digits.
        fields: Names of its text fields.
    """

    connection: sqlite3.Connection
    dataset: str
    fields: Sequence[str]

    @property
    def docs(self) -> str:
        """Table of the indexed records: rowid, record id, and the time of the record's last change."""
        return f"docs_{self.dataset}"

    @property
    def texts(self) -> str:
        """FTS5 table of their tokens, with the same rowids."""
        return f"texts_{self.dataset}"

    def drop(self) -> None:
        """Delete the index of the dataset."""
        with transaction(self.connection):
            self._drop()

    def update(self, records: Iterable[str]) -> None:
        """Index the records with these ids, or index them again."""
        self._create()
        with transaction(self.connection):
            self._update(list(records))

    def remove(self, records: Iterable[str]) -> None:
        """Remove the records with these ids."""
        self._create()
        with transaction(self.connection):
            self._remove(list(records))

    def synchronize(self, *, thorough: bool) -> None:
        """Bring the index in line with Argilla's records.

        Args:
            thorough: Compare record by record. Otherwise this is done only if the number of records or the time of the
                last change differ, which overlooks a missed change if a later one was indexed: enough only if nothing
                was committed since the last comparison.
        """
        self._create()
        if not (thorough or self._seems_outdated()) or not any(self._differences()):
            return
        with transaction(self.connection):
            outdated, deleted = self._differences()  # again: another process may have done it before our transaction
            self._remove(deleted)
            self._update(outdated)

    def rebuild(self) -> None:
        """Delete the index and index all records again, in one transaction."""
        with transaction(self.connection):
            self._drop()
            self._create()
            self._update(self._differences()[0])

    def lacking(self) -> tuple[int, int]:
        """Number of records that are missing or outdated in the index, and of entries that are damaged.

        The next search corrects the former. Damaged are entries whose tokens are lost.
        """
        tables = self.connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name IN (?, ?)", (self.docs, self.texts)
        )
        if tables.fetchone()[0] < 2:
            everything = "SELECT count(*) FROM argilla.records WHERE dataset_id = ?"
            return int(self.connection.execute(everything, (self.dataset,)).fetchone()[0]), 0
        outdated, _ = self._differences()
        lost = f"SELECT count(*) FROM {self.docs} d WHERE d.rowid NOT IN (SELECT t.rowid FROM {self.texts} t)"
        return len(outdated), int(self.connection.execute(lost).fetchone()[0])

    def condition(self, query: Query, bind: "Parameters", field: str | None) -> str:
        """SQL condition that is true for the rows of the docs table ``d`` that match.

        Args:
            query: The parsed query.
            bind: Parameters of the statement; values are added to it.
            field: Name of the field to search in; None searches all fields.
        """
        if isinstance(query, Phrase):
            return f"d.rowid IN ({self._select_matches(query.match, bind, field)})"
        if isinstance(query, Not):
            return f"NOT ({self.condition(query.query, bind, field)})"
        operator = " AND " if isinstance(query, And) else " OR "
        return "(" + operator.join(self.condition(inner, bind, field) for inner in query.queries) + ")"

    def select_scores(self, phrases: Sequence[Phrase], bind: "Parameters", field: str | None) -> str:
        """SELECT of (rowid, score) for records that contain any of the phrases; a better match scores higher."""
        match = " OR ".join(phrase.match for phrase in phrases)
        return self._select_matches(match, bind, field, "rowid, -rank AS score")  # FTS5's rank: lower is better

    def _select_matches(self, match: str, bind: "Parameters", field: str | None, columns: str = "rowid") -> str:
        within = match if field is None else f"{{f{list(self.fields).index(field)}}} : ({match})"
        return f"SELECT {columns} FROM {self.texts} WHERE {self.texts} MATCH {bind(within)}"

    def _drop(self) -> None:
        self.connection.execute(f"DROP TABLE IF EXISTS {self.texts}")
        self.connection.execute(f"DROP TABLE IF EXISTS {self.docs}")

    def _create(self) -> None:
        columns = ", ".join(f"f{index}" for index in range(max(1, len(self.fields))))
        self.connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self.docs} (rowid INTEGER PRIMARY KEY, record TEXT UNIQUE, changed TEXT)"
        )
        self.connection.execute(f"CREATE INDEX IF NOT EXISTS {self.docs}_changed ON {self.docs} (changed)")
        # Texts are tokenized before they are stored, so FTS5 only has to split at spaces, which `ascii` does: it takes
        # every character beyond ASCII as part of a token.
        self.connection.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS {self.texts} USING fts5({columns}, tokenize=ascii)"
        )

    def _seems_outdated(self) -> bool:
        """Whether the number of records or the time of the last change differ; fast, as both are indexed."""
        expected = self.connection.execute(
            "SELECT count(*), max(updated_at) FROM argilla.records WHERE dataset_id = ?", (self.dataset,)
        ).fetchone()
        indexed = self.connection.execute(f"SELECT count(*), max(changed) FROM {self.docs}").fetchone()
        return bool(expected != indexed)

    def _differences(self) -> tuple[list[str], list[str]]:
        """Ids of records that are missing or outdated in the index, and of those deleted from Argilla."""
        outdated = self.connection.execute(
            f"SELECT r.id, d.record IS NULL FROM argilla.records r LEFT JOIN {self.docs} d ON d.record = r.id"
            " WHERE r.dataset_id = ? AND d.changed IS NOT r.updated_at",
            (self.dataset,),
        ).fetchall()
        ids, missing = [record for record, _ in outdated], sum(is_missing for _, is_missing in outdated)
        entries = f"(SELECT count(*) FROM {self.docs})"
        surplus = f"SELECT {entries} + ? - count(*) FROM argilla.records WHERE dataset_id = ?"
        if not self.connection.execute(surplus, (missing, self.dataset)).fetchone()[0]:
            return ids, []  # each entry has its record: no need for the second comparison, as slow as the first
        deleted = self.connection.execute(
            f"SELECT d.record FROM {self.docs} d WHERE NOT EXISTS"
            " (SELECT 1 FROM argilla.records r WHERE r.id = d.record AND r.dataset_id = ?)",
            (self.dataset,),
        )
        return ids, [row[0] for row in deleted]

    def _update(self, records: list[str]) -> None:
        for start in range(0, len(records), _BATCH_SIZE):
            rows = self.connection.execute(
                "SELECT r.id, r.updated_at, r.fields FROM argilla.records r JOIN json_each(?) i ON i.value = r.id",
                (json.dumps(records[start : start + _BATCH_SIZE]),),
            ).fetchall()
            for record, changed, fields in rows:
                self._update_one(record, changed, json.loads(fields))

    def _update_one(self, record: str, changed: str, fields: dict[str, Any]) -> None:
        (rowid,) = self.connection.execute(
            f"INSERT INTO {self.docs} (record, changed) VALUES (?, ?)"
            " ON CONFLICT (record) DO UPDATE SET changed = excluded.changed RETURNING rowid",
            (record, changed),
        ).fetchone()
        values = [" ".join(tokenize(plain_text(fields.get(name)))) for name in self.fields] or [""]
        placeholders = ", ".join(["?"] * (len(values) + 1))
        columns = ", ".join(f"f{index}" for index in range(len(values)))
        self.connection.execute(
            f"REPLACE INTO {self.texts} (rowid, {columns}) VALUES ({placeholders})", (rowid, *values)
        )

    def _remove(self, records: list[str]) -> None:
        for record in records:
            rows = self.connection.execute(
                f"DELETE FROM {self.docs} WHERE record = ? RETURNING rowid", (record,)
            ).fetchall()
            self.connection.executemany(f"DELETE FROM {self.texts} WHERE rowid = ?", rows)


class Parameters:
    """Collects the named parameters of an SQL statement while its text is built."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __call__(self, value: Any) -> str:  # noqa: ANN401  what SQLite stores
        """Add a value; returns its placeholder, such as ``:v0``."""
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f":{name}"


def plain_text(value: Any) -> str:  # noqa: ANN401  any JSON value
    """Text of a field as the web interface shows it: a string, the contents of a chat, or the strings of other JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(plain_text(item) for item in value)
    if isinstance(value, dict):
        # Of a chat message only the content: a search for "user" must not find every conversation.
        shown = [value["content"]] if "role" in value and "content" in value else list(value.values())
        return "\n".join(plain_text(item) for item in shown)
    return ""


def datasets(connection: sqlite3.Connection) -> list[TextIndex]:
    """The indexes of all published datasets.

    Args:
        connection: From ``store.connect``.
    """
    ids = connection.execute("SELECT id FROM argilla.datasets WHERE status = 'ready' ORDER BY id").fetchall()
    # In the order in which Argilla lists the fields of a dataset: the columns of the index have no names.
    fields = (
        "SELECT name FROM argilla.fields WHERE dataset_id = ? AND json_extract(settings, '$.type') <> 'image'"
        " ORDER BY inserted_at"
    )
    return [TextIndex(connection, id_, [name for (name,) in connection.execute(fields, (id_,))]) for (id_,) in ids]
