"""The flagged rows of a selection as they leave it: id, digest, texts and evidence in plain words."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from larf_curate.columns import ROW_ID, content_digest
from larf_curate.conversation.answers import answer
from larf_curate.errors import ConversationError
from larf_curate.review.records.escaping import overrides_direction
from larf_curate.review.records.evidence import MAX_EXEMPLAR_CHARACTERS
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.folding import scored_answer
from larf_curate.review.records.reason import is_number, ranks, reason
from larf_curate.review.records.record import OVERRIDE_WARNING, Turn, shown_turns
from larf_curate.scoring.exemplar_texts import exemplar_texts
from larf_curate.scoring.selection import Selection
from larf_curate.signals.words import in_words


@dataclass(frozen=True, kw_only=True)
class ReviewRow:
    """A flagged row for review.

    Args:
        row_id: Its ``larf_row_id``.
        content_digest: Digest of its content; a decision on another content is stale.
        score: Its score; None if it could not be scored.
        turns: Role and text of each turn, as the review page of Argilla shows them.
        evidence: Why it was flagged, as lines of plain text.
        answer: Text of the last assistant turn, which an edit replaces; None if it is not a conversation.
    """

    row_id: str
    content_digest: str
    score: float | None
    turns: list[Turn]
    evidence: str
    answer: str | None

    @property
    def text(self) -> str:
        """The turns as one text."""
        return "\n\n".join(f"{role}: {text}" for role, text in self.turns)


def review_rows(selection: Selection) -> Iterator[ReviewRow]:
    """The flagged rows of a selection, worst first.

    Raises:
        InputError: If ``larf_row_id`` is missing or not unique.
    """
    flagged = FlaggedRows.read(selection.flagged)
    columns = recorded_columns(selection)
    exemplars, places = exemplar_texts(selection.scored), ranks(flagged.ids, flagged.scores)
    signal = (selection.scored.get("profile") or {}).get("signal")
    for row in flagged:
        turns, score = shown_turns(row, columns), row.get("larf_score")
        sentence = reason(row, signal=signal, rank=places.get(row[ROW_ID]))
        yield ReviewRow(
            row_id=row[ROW_ID],
            content_digest=content_digest(row),
            score=float(score) if is_number(score) else None,
            turns=turns,
            evidence="\n".join(_evidence(row, turns, exemplars, sentence)),
            answer=_answer(row, columns),
        )


def recorded_columns(selection: Selection) -> Mapping[str, str] | None:
    """Column names by role with which the rows were scored; None if they were inferred."""
    return (selection.scored.get("source") or {}).get("columns") or None


def rows_digest(rows: list[ReviewRow]) -> str:
    """Hex SHA-256 of the ids and contents of rows, which tells one selection from another."""
    content = "".join(f"{row.row_id}\n{row.content_digest}\n" for row in rows)
    return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()


def _answer(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> str | None:
    try:
        return answer(row, columns)
    except ConversationError:
        return None


def _evidence(row: Mapping[str, Any], turns: list[Turn], exemplars: Mapping[str, str], sentence: str) -> Iterator[str]:
    """Lines of evidence: the reason in one sentence, a warning, the score, the axes, and the nearest exemplars."""
    yield from filter(None, (sentence, scored_answer(row, turns).said))
    if any(overrides_direction(text) for _, text in turns):
        yield OVERRIDE_WARNING.replace("*", "")
    yield from filter(None, (_score_line(row), in_words(row.get("larf_signals"))))
    for neighbor in row.get("larf_neighbors") or []:
        if is_number(neighbor["cosine"]):
            name = exemplars.get(str(neighbor["id"]), str(neighbor["id"]))
            shown = " ".join(name.split())[:MAX_EXEMPLAR_CHARACTERS]
            yield f"nearest exemplar: {neighbor['label']}, cosine {neighbor['cosine']:.3f}: {shown}"


def _score_line(row: Mapping[str, Any]) -> str:
    score, percentile, status = row.get("larf_score"), row.get("larf_percentile"), row.get("larf_status")
    if not is_number(score):
        return ""
    rank = f", percentile {percentile:.1f}" if is_number(percentile) else ""
    remark = "" if status in (None, "ok") else f", {status}"
    return f"score {score:.3f}{rank}{remark}"
