"""Single rows of a report: conversation, scores, neighbours and reason, cut to a size that a page can hold."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from larf_curate.conversation.schemas import Message, Row, to_messages
from larf_curate.errors import ConversationError
from larf_curate.report.excerpts import Excerpt, as_json, excerpt, one_line

_OPENING, _CLOSING = 4, 12


@dataclass(frozen=True)
class Turn:
    """One message: its role and its text."""

    role: str
    text: Excerpt


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row as the page shows it.

    Args:
        position: Place of the row in the dataset, from 0.
        row_id: The stable id that selection gives, if any.
        status: The row's ``larf_status``.
        score: The row's score, None if it has none.
        flagged: Whether a selection flagged it.
        reason: Why it was flagged, if a selection said so.
        summary: One line of its text.
        opening: The first turns.
        hidden_turns: How many turns follow that are left out.
        closing: The last turns.
        raw: The row as JSON where it is no conversation.
        layers: Score by layer.
        signals: Value by signal.
        neighbors: The nearest exemplars.
    """

    position: int
    row_id: str | None
    status: str
    score: float | None
    flagged: bool
    reason: str | None
    summary: str
    opening: Sequence[Turn]
    hidden_turns: int
    closing: Sequence[Turn]
    raw: Excerpt | None
    layers: Sequence[float]
    signals: Mapping[str, float]
    neighbors: Sequence[Mapping[str, Any]]


def read_examples(
    rows: Dataset, positions: Iterable[int], columns: Mapping[str, str] | None = None
) -> Iterator[Example]:
    """Read the rows at the given positions, in that order, without their stored states."""
    table = rows.select_columns([name for name in rows.column_names if name != "larf_state"]).with_format("arrow")
    for position in positions:
        yield _example(table[position : position + 1].to_pylist()[0], position, columns)


def _example(row: Row, position: int, columns: Mapping[str, str] | None) -> Example:
    turns, raw = _content(row, columns)
    cut = len(turns) > _OPENING + _CLOSING
    texts = [turn.text.head for turn in sorted(turns, key=lambda turn: turn.role != "user")] + (
        [raw.head] if raw else []
    )
    return Example(
        position=position,
        row_id=row.get("larf_row_id"),
        status=str(row["larf_status"]),
        score=row["larf_score"],
        flagged=bool(row.get("larf_flagged")),
        reason=row.get("larf_reason"),
        summary=one_line(texts[0]),
        opening=turns[:_OPENING] if cut else turns,
        hidden_turns=len(turns) - _OPENING - _CLOSING if cut else 0,
        closing=turns[-_CLOSING:] if cut else [],
        raw=raw,
        layers=row.get("larf_layer_scores") or [],
        signals=row.get("larf_signals") or {},
        neighbors=row.get("larf_neighbors") or [],
    )


def _content(row: Row, columns: Mapping[str, str] | None) -> tuple[list[Turn], Excerpt | None]:
    """The row's turns, or the row as JSON if it is no conversation."""
    source = {name: value for name, value in row.items() if not name.startswith("larf_")}
    try:
        return [Turn(message["role"], excerpt(_text(message))) for message in to_messages(source, columns)], None
    except ConversationError:
        return [], excerpt(as_json(source))


def _text(message: Message) -> str:
    calls = as_json(message["tool_calls"]) if message.get("tool_calls") else ""
    return "\n".join(part for part in (message["content"], calls) if part)
