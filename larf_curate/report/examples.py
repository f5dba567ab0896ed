"""Single rows of a report: conversation, scores, nearest exemplars and reason, shortened to a displayable size."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from larf_curate.columns import ROW_ID, STATE, source_columns
from larf_curate.conversation.display import display_turns
from larf_curate.conversation.schemas import Row
from larf_curate.errors import ConversationError
from larf_curate.report.excerpts import Excerpt, as_json, excerpt, one_line
from larf_curate.signals.words import in_words

if TYPE_CHECKING:
    from larf_curate.report.token_shading import ShadedText

_FIRST_TURNS, _LAST_TURNS = 4, 12  # more of the end, as context of the last answer


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Args:
        role: Role of the message.
        text: Its text.
        shaded: The same text up to the gap, as `ShadedText` by the contribution of its tokens; empty if not shaded.
    """

    role: str
    text: Excerpt
    shaded: "Sequence[ShadedText]" = ()


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row as shown on the page.

    Args:
        position: 0-based index of the row in the dataset.
        row_id: The stable ``larf_row_id``; None before selection.
        status: The row's ``larf_status``.
        score: The row's score; higher means closer to unsafe, None without a score.
        flagged: Whether a selection flagged the row.
        reason: Why a selection flagged the row, if it did.
        words: The axes in words with their values; empty without axes.
        summary: One line of the row's text.
        first_turns: The first turns, or all turns of a short conversation.
        hidden_turns: Number of turns that are not shown.
        last_turns: The last turns of a long conversation.
        raw: The row as JSON, if it is not a conversation.
        layers: Score at each layer; empty without a score.
        signals: Value by signal name.
        neighbors: The nearest exemplars: ``id``, ``label`` and ``cosine`` each.
        elsewhere: Total contribution to the score of the tokens that no turn shows; None if tokens are not shaded.
    """

    position: int
    row_id: str | None
    status: str
    score: float | None
    flagged: bool
    reason: str | None
    words: str
    summary: str
    first_turns: Sequence[Turn]
    hidden_turns: int
    last_turns: Sequence[Turn]
    raw: Excerpt | None
    layers: Sequence[float]
    signals: Mapping[str, float]
    neighbors: Sequence[Mapping[str, Any]]
    elsewhere: float | None = None


def read_examples(
    rows: Dataset, positions: Iterable[int], columns: Mapping[str, str] | None = None
) -> Iterator[Example]:
    """Read the rows at the given positions, in that order.

    Stored states are not loaded: they are by far the largest column, and the page does not show them.

    Args:
        rows: Scored rows.
        positions: 0-based indices of rows.
        columns: Column names by role, if the user gave any.
    """
    unused, table = [name for name in (STATE,) if name in rows.column_names], rows.with_format("arrow")
    for position in positions:
        [row] = table[position : position + 1].drop_columns(unused).to_pylist()
        yield _example(row, position, columns)


def _example(row: Row, position: int, columns: Mapping[str, str] | None) -> Example:
    turns, raw = _content(row, columns)
    cut = len(turns) > _FIRST_TURNS + _LAST_TURNS
    # The summary is the first user turn if there is one: system prompts are often the same in every row.
    texts = [turn.text.head for turn in sorted(turns, key=lambda turn: turn.role != "user")] + (
        [raw.head] if raw else []
    )
    return Example(
        position=position,
        row_id=row.get(ROW_ID),
        status=str(row["larf_status"]),
        score=row["larf_score"],
        flagged=bool(row.get("larf_flagged")),
        reason=row.get("larf_reason"),
        words=in_words(row.get("larf_signals")),
        summary=one_line(texts[0]),
        first_turns=turns[:_FIRST_TURNS] if cut else turns,
        hidden_turns=len(turns) - _FIRST_TURNS - _LAST_TURNS if cut else 0,
        last_turns=turns[-_LAST_TURNS:] if cut else [],
        raw=raw,
        layers=row.get("larf_layer_scores") or [],
        signals=row.get("larf_signals") or {},
        neighbors=row.get("larf_neighbors") or [],
    )


def _content(row: Row, columns: Mapping[str, str] | None) -> tuple[list[Turn], Excerpt | None]:
    """The row's turns, or the row as JSON if it is not a conversation."""
    source = {name: row[name] for name in source_columns(row)}
    try:
        return [Turn(role, excerpt(text)) for role, text in display_turns(source, columns)], None
    except ConversationError:
        return [], excerpt(as_json(source))
