"""The full-text index: per dataset one FTS5 table with a column per field, and what it knows of each record.

The index is a copy that may be lost: before each search it is compared with Argilla's records, and what is missing,
changed or gone is made good. So a crash between Argilla's commit and the index's leaves no record unfound.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .store import writing
from .text_query import Both, Not, Part, Words, tokens

_BATCH = 500


@dataclass(frozen=True)
class TextIndex:
    """The index of one dataset.

    Args:
        connection: From ``store.connect``.
        dataset: The dataset's id, 32 hex digits.
        fields: Names of its fields that hold text.
    """

    connection: sqlite3.Connection
    dataset: str
    fields: Sequence[str]

    @property
    def docs(self) -> str:
        """Table of the records in the index: rowid, record id, and when the record had changed last."""
        return f"docs_{self.dataset}"

    @property
    def texts(self) -> str:
        """FTS5 table of their tokens, by the same rowid."""
        return f"texts_{self.dataset}"

    def drop(self) -> None:
        """Forget the dataset."""
        with writing(self.connection):
            self.connection.execute(f"DROP TABLE IF EXISTS {self.texts}")
            self.connection.execute(f"DROP TABLE IF EXISTS {self.docs}")

    def put(self, records: Iterable[str]) -> None:
        """Index the records of these ids anew."""
        self._create()
        with writing(self.connection):
            self._put(list(records))

    def remove(self, records: Iterable[str]) -> None:
        """Take the records of these ids out."""
        self._create()
        with writing(self.connection):
            self._remove(list(records))

    def catch_up(self, *, thorough: bool) -> None:
        """Index what Argilla holds and the index does not, and forget what Argilla forgot.

        Args:
            thorough: Compare record by record; else only when the number of records or the last change differ, which
                cannot see a change missed before a later one was indexed.
        """
        self._create()
        if not (thorough or self._looks_behind()) or not any(self._behind()):
            return
        with writing(self.connection):
            missing, gone = self._behind()
            self._remove(gone)
            self._put(missing)

    def condition(self, part: Part, bind: "Bind", field: str | None) -> str:
        """SQL that is true for a row of ``docs d`` that matches."""
        if isinstance(part, Words):
            return f"d.rowid IN ({self._rowids(part.match, bind, field)})"
        if isinstance(part, Not):
            return f"NOT ({self.condition(part.part, bind, field)})"
        sign = " AND " if isinstance(part, Both) else " OR "
        return "(" + sign.join(self.condition(inner, bind, field) for inner in part.parts) + ")"

    def ranked(self, found: Sequence[Words], bind: "Bind", field: str | None) -> str:
        """SQL of (rowid, score) for the records that hold any of the words; a better match scores higher."""
        match = " OR ".join(word.match for word in found)
        return self._rowids(match, bind, field, "rowid, -rank AS score")

    def _rowids(self, match: str, bind: "Bind", field: str | None, columns: str = "rowid") -> str:
        within = match if field is None else f"{{f{list(self.fields).index(field)}}} : ({match})"
        return f"SELECT {columns} FROM {self.texts} WHERE {self.texts} MATCH {bind(within)}"

    def _create(self) -> None:
        columns = ", ".join(f"f{place}" for place in range(max(1, len(self.fields))))
        self.connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self.docs} (rowid INTEGER PRIMARY KEY, record TEXT UNIQUE, changed TEXT)"
        )
        self.connection.execute(f"CREATE INDEX IF NOT EXISTS {self.docs}_changed ON {self.docs} (changed)")
        # the tokens come ready-made: the ascii tokenizer only splits them at the spaces between
        self.connection.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS {self.texts} USING fts5({columns}, tokenize=ascii)"
        )

    def _looks_behind(self) -> bool:
        there = self.connection.execute(
            "SELECT count(*), max(updated_at) FROM argilla.records WHERE dataset_id = ?", (self.dataset,)
        )
        return bool(
            there.fetchone() != self.connection.execute(f"SELECT count(*), max(changed) FROM {self.docs}").fetchone()
        )

    def _behind(self) -> tuple[list[str], list[str]]:
        missing = self.connection.execute(
            f"SELECT r.id FROM argilla.records r LEFT JOIN {self.docs} d ON d.record = r.id"
            " WHERE r.dataset_id = ? AND d.changed IS NOT r.updated_at",
            (self.dataset,),
        )
        gone = self.connection.execute(
            f"SELECT d.record FROM {self.docs} d WHERE NOT EXISTS"
            " (SELECT 1 FROM argilla.records r WHERE r.id = d.record AND r.dataset_id = ?)",
            (self.dataset,),
        )
        return [row[0] for row in missing], [row[0] for row in gone]

    def _put(self, records: list[str]) -> None:
        for start in range(0, len(records), _BATCH):
            found = self.connection.execute(
                "SELECT r.id, r.updated_at, r.fields FROM argilla.records r JOIN json_each(?) i ON i.value = r.id",
                (json.dumps(records[start : start + _BATCH]),),
            ).fetchall()
            for record, changed, fields in found:
                self._put_one(record, changed, json.loads(fields))

    def _put_one(self, record: str, changed: str, fields: dict[str, Any]) -> None:
        (rowid,) = self.connection.execute(
            f"INSERT INTO {self.docs} (record, changed) VALUES (?, ?)"
            " ON CONFLICT (record) DO UPDATE SET changed = excluded.changed RETURNING rowid",
            (record, changed),
        ).fetchone()
        values = [" ".join(tokens(plain_text(fields.get(name)))) for name in self.fields] or [""]
        places = ", ".join(["?"] * (len(values) + 1))
        columns = ", ".join(f"f{place}" for place in range(len(values)))
        self.connection.execute(f"REPLACE INTO {self.texts} (rowid, {columns}) VALUES ({places})", (rowid, *values))

    def _remove(self, records: list[str]) -> None:
        for record in records:
            row = self.connection.execute(
                f"DELETE FROM {self.docs} WHERE record = ? RETURNING rowid", (record,)
            ).fetchall()
            self.connection.executemany(f"DELETE FROM {self.texts} WHERE rowid = ?", row)


class Bind:
    """Collects the values of a statement while its text is put together."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __call__(self, value: Any) -> str:  # noqa: ANN401  what SQLite stores
        """Take a value; returns its place in the text."""
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f":{name}"


def plain_text(value: Any) -> str:  # noqa: ANN401  any JSON value
    """The text a field shows: a string, the contents of a chat, the strings of a custom field."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(plain_text(item) for item in value)
    if isinstance(value, dict):
        shown = [value["content"]] if "role" in value and "content" in value else list(value.values())
        return "\n".join(plain_text(item) for item in shown)
    return ""
