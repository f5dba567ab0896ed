"""The table of rows of a page: short texts and values as JSON, which the page's script searches, sorts and filters."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from markupsafe import Markup

from larf_curate.columns import DECISION, GUARD, INDEX, ROW_ID, source_columns
from larf_curate.conversation.display import display_turns
from larf_curate.conversation.schemas import Row
from larf_curate.errors import ConversationError
from larf_curate.report.excerpts import as_json, one_line, visible
from larf_curate.report.sampling import Indices
from larf_curate.signals.words import in_words

TEXT_BYTES = 200
"""Maximum size of each of the two texts of a row."""
OWN_LABELS = ("split", "label", "category")
"""Columns of a dataset by whose values its rows can be filtered, if it has them."""
MAX_VALUES, OTHER = 50, "other"
"""Maximum number of values that a filter has, and the name of all further ones."""
AXES = ("erosion", "compliance", "harmful")
"""Signals of the plot of the axes: horizontal, vertical, and colour is the score."""
_READ = (ROW_ID, INDEX, "larf_score", "larf_status", "larf_flagged", "larf_signals", "larf_neighbors", GUARD, DECISION)
_BATCH = 100
# In a script element, "</script>" or "<!--" would end it; the others are line breaks to old parsers of scripts.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A row of the table.

    Args:
        position: 0-based index of the row in the report's rows.
        index: Its 0-based index in the scored dataset, which the table shows; `position` before selection.
        row_id: Its ``larf_row_id``; None before selection.
        score: Its score; None without one.
        flagged: Whether a selection flagged it.
        request: Beginning of its first user turn, or of the row as JSON if it is not a conversation.
        answer: Beginning of its last turn.
        labels: Values of its filters by name: ``status``, ``reason``, and others that the dataset has.
        axes: Values of `AXES`; NaN where it has none.
        guard: A guard model's probability that its answer is unsafe; None without one.
    """

    position: int
    index: int
    row_id: str | None
    score: float | None
    flagged: bool
    request: str
    answer: str
    labels: Mapping[str, str]
    axes: tuple[float, ...]
    guard: float | None

    @property
    def text(self) -> str:
        """Both texts on one line, for a tooltip."""
        return f"{self.request} → {self.answer}" if self.answer else self.request


def read_table(rows: Dataset, positions: Indices, columns: Mapping[str, str] | None = None) -> list[TableRow]:
    """Read rows for the table, in batches and without stored states.

    Args:
        rows: Scored rows.
        positions: 0-based indices of rows.
        columns: Column names by role, if the user gave any.
    """
    names = [name for name in _READ if name in rows.column_names]
    table = rows.select_columns([*source_columns(rows.column_names), *names]).with_format("arrow")
    return list(_rows(table, positions, columns))


def _rows(table: Dataset, positions: Indices, columns: Mapping[str, str] | None) -> Iterator[TableRow]:
    for first in range(0, len(positions), _BATCH):
        batch = positions[first : first + _BATCH].tolist()
        for position, row in zip(batch, table[batch].to_pylist(), strict=True):
            yield _row(row, position, columns)


def _row(row: Row, position: int, columns: Mapping[str, str] | None) -> TableRow:
    score, signals = row["larf_score"], row.get("larf_signals") or {}
    known = score is not None and np.isfinite(score)
    request, answer = _texts({name: row[name] for name in source_columns(row)}, columns)
    return TableRow(
        position=position,
        index=row.get(INDEX, position),
        row_id=row.get(ROW_ID) and str(visible(str(row[ROW_ID]))),
        score=float(score) if known else None,
        flagged=bool(row.get("larf_flagged")),
        request=_short(request),
        answer=_short(answer),
        labels=_labels(row, known),
        axes=tuple(_number(signals.get(name)) for name in AXES),
        guard=_probability((row.get(GUARD) or {}).get("answer")),
    )


def _texts(source: Row, columns: Mapping[str, str] | None) -> tuple[str, str]:
    """First user turn and last turn of a row; the row as JSON if it is not a conversation."""
    try:
        turns = display_turns(source, columns)
    except ConversationError:
        return as_json(source), ""
    request = next((text for role, text in turns if role == "user"), "")
    return request, turns[-1][1]


def _labels(row: Row, known: bool) -> dict[str, str]:
    labels = {"status": str(row.get("larf_status"))}
    if not known:
        labels["reason"] = f"not scorable: {labels['status']}"
    elif words := in_words(row.get("larf_signals"), figures=False):
        labels["reason"] = words
    if neighbors := row.get("larf_neighbors"):
        labels["nearest exemplar"] = str(neighbors[0]["label"])
    if row.get(DECISION) is not None:
        labels["decision"] = str(row[DECISION])
    labels |= {name: str(row[name]) for name in OWN_LABELS if isinstance(row.get(name), str | int | float)}
    return {name: str(visible(one_line(value, limit=80))) for name, value in labels.items()}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _probability(value: object) -> float | None:
    return round(float(value), 3) if isinstance(value, int | float) and np.isfinite(value) else None


def _short(text: str) -> str:
    """The beginning of a text on one line, of at most `TEXT_BYTES` bytes, with control characters made visible."""
    line = str(visible(one_line(text, limit=TEXT_BYTES)))
    encoded = line.encode()
    return line if len(encoded) <= TEXT_BYTES else encoded[: TEXT_BYTES - 3].decode("utf-8", "ignore") + "…"


def table_json(rows: Sequence[TableRow]) -> dict[str, Any]:
    """The columns of the table as JSON values; filters as indices of their values, -1 for rows without one."""
    names = list(dict.fromkeys(name for row in rows for name in row.labels))
    values = {name: _values([row.labels.get(name) for row in rows]) for name in names}
    return {
        "row": [row.index for row in rows],
        "id": [row.row_id for row in rows],
        "score": [row.score for row in rows],
        "flagged": [int(row.flagged) for row in rows],
        "request": [row.request for row in rows],
        "answer": [row.answer for row in rows],
        "guard": [row.guard for row in rows],
        "labels": {name: _indices([row.labels.get(name) for row in rows], values[name]) for name in names},
        "values": values,
    }


def _values(labels: Sequence[str | None]) -> list[str]:
    """The different labels, the most frequent first; of many, the last one stands for all others."""
    counts = Counter(label for label in labels if label is not None)
    ordered = sorted(counts, key=lambda label: (-counts[label], label))
    return ordered if len(ordered) <= MAX_VALUES else [*ordered[: MAX_VALUES - 1], OTHER]


def _indices(labels: Sequence[str | None], values: Sequence[str]) -> list[int]:
    places = {value: index for index, value in enumerate(values)}
    return [-1 if label is None else places.get(label, len(values) - 1) for label in labels]


def embedded_json(value: Mapping[str, Any]) -> Markup:
    """JSON as the content of a script element, which no text in it can leave: it has no ``<``, ``>`` or ``&``."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escape in _ESCAPED.items():
        text = text.replace(character, escape)
    return Markup(visible(text))
