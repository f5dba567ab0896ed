"""The Argilla record of a flagged row."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.columns import ROW_ID, content_digest, source_columns
from larf_curate.conversation.answers import answer
from larf_curate.conversation.display import display_turns
from larf_curate.errors import ConversationError
from larf_curate.review.argilla.settings import CLUSTER, IN_WORDS, MACHINE_SCORE, SCORE, VECTOR
from larf_curate.review.records.escaping import escape_html, overrides_direction, split_html, storable, truncate_middle
from larf_curate.review.records.evidence import Context, Nearest, evidence
from larf_curate.review.records.folding import folded, opening, scored_answer
from larf_curate.review.records.near_duplicates import Group
from larf_curate.review.records.reason import Rank, is_number
from larf_curate.review.records.scale import Scale
from larf_curate.signals.words import in_words

MAX_TURNS = 400
"""The server accepts 500 messages; the remainder is for long turns, which are split into several messages."""
MAX_MESSAGE_CHARACTERS = 20_000
"""The server's limit; longer turns are split into several messages."""
MAX_ROW_CHARACTERS = 200_000
"""More than a reviewer reads or a browser renders quickly; longer conversations are visibly shortened."""

OVERRIDE_WARNING = (
    "**Careful:** the text contains bidirectional overrides (U+202D, U+202E): it may not say what it appears to say."
)
CONTENT_DIGEST = "content_digest"
RECORD_DIGEST = "record_digest"
OUTDATED_RESPONSES = "outdated_responses"
DECIDED_TOGETHER = "decided_together"
ANSWER_DIGEST = "answer_digest"
SUGGESTED_BY = "the row itself"
"""Agent of the suggested answer, as the page names it."""
SAMPLING = "sampling"
"""Metadata of a record that a push by expected harm sent; see `larf_curate.review.sampling`."""

Record = dict[str, Any]
Turn = tuple[str, str]
Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RecordMaker:
    """Makes records of flagged rows.

    Args:
        columns: Column names by role, if the rows' format cannot be recognised by its column names.
        layers: Decoder blocks of ``larf_layer_scores``, in its order.
        signal: Name of the signal of ``larf_score``.
        split: Name of the split that the rows come from.
        exemplars: Texts of exemplars by id.
        vectors: Reduced states for *find similar* by row id, each of shape (k,); a zero vector is not sent.
        groups: Groups of near-duplicates by row id.
        scale: Scale of the bars of the queue.
        ranks: Ranks in the queue by row id.
        kept: Nearest rows that are known to be fine, by row id.
        answer_question: Id of the question for the corrected answer, whose suggestion is the row's answer; None
            suggests nothing.
    """

    columns: Mapping[str, str] | None = None
    layers: Sequence[int] | None = None
    signal: str | None = None
    split: str | None = None
    exemplars: Mapping[str, str] | None = None
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    scale: Scale = Scale()
    ranks: Mapping[str, Rank] = field(default_factory=dict)
    kept: Mapping[str, Nearest] = field(default_factory=dict)
    answer_question: str | None = None

    def __call__(self, row: Mapping[str, Any]) -> Record:
        """Make the record of one row.

        Its metadata contains two digests: of the row's content, which decides whether responses are still valid, and
        of the record, which decides whether a push has to send it again.

        Args:
            row: A flagged row with ``larf_row_id``.
        """
        turns, original = shown_turns(row, self.columns), original_answer(row, self.columns)
        scored = scored_answer(row, turns)
        explained = evidence(row, self._context(row, scored.said))
        if any(overrides_direction(text) for _, text in turns):
            explained = f"{OVERRIDE_WARNING}\n\n{explained}"
        shown: Record = {
            "fields": {"conversation": chat_field(turns, scored.index), "evidence": explained},
            "metadata": self._metadata(row, turns, original),
            **self._suggestion(original),
        }
        vector = self.vectors.get(row[ROW_ID])
        digests = {CONTENT_DIGEST: content_digest(row), RECORD_DIGEST: _record_digest(shown, vector)}
        if vector is not None and vector.any():
            shown["vectors"] = {VECTOR: np.round(vector.astype(np.float64), 5).tolist()}
        return {"external_id": row[ROW_ID], **shown, "metadata": shown["metadata"] | digests}

    def _context(self, row: Mapping[str, Any], turn: str) -> Context:
        name = row[ROW_ID]
        return Context(
            signal=self.signal,
            layers=self.layers,
            exemplars=self.exemplars,
            scale=self.scale,
            rank=self.ranks.get(name),
            group=self.groups.get(name),
            kept=self.kept.get(name),
            turn=turn,
        )

    def _suggestion(self, original: str | None) -> Record:
        """The row's answer as suggestion for the corrected one: an edit starts from it."""
        if self.answer_question is None or original is None:
            return {}
        return {"suggestions": [{"question_id": self.answer_question, "value": original, "agent": SUGGESTED_BY}]}

    def _metadata(self, row: Mapping[str, Any], turns: list[Turn], original: str | None) -> Record:
        """Properties to filter and sort by; missing values are omitted, because the server rejects null and NaN."""
        group = self.groups.get(row[ROW_ID])
        shared = {DECIDED_TOGETHER: dict(group.shared)} if group and group.shared else {}
        score = row.get("larf_score")
        numbers = {SCORE: score, MACHINE_SCORE: score, "percentile": row.get("larf_percentile")}
        terms = {"signal": self.signal, "split": self.split, "status": row.get("larf_status")}
        terms |= {CLUSTER: group.name if group else None}
        terms |= {IN_WORDS: in_words(row.get("larf_signals"), figures=False)}
        terms |= {ANSWER_DIGEST: answer_digest(original) if original else None}
        length = sum(len(text) for _, text in turns)
        scores = {name: float(value) for name, value in numbers.items() if is_number(value)}
        return scores | {name: value for name, value in terms.items() if value} | {"length": length} | shared


def original_answer(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> str | None:
    """The answer that an edit would replace, as the server can store it.

    Args:
        row: A dataset row.
        columns: Column names by role, if the format cannot be recognised.

    Returns:
        None if the row is no conversation, its answer is blank, or too long to be edited on a page.
    """
    try:
        text = storable(answer(row, columns))
    except ConversationError:
        return None
    return text if text.strip() and len(text) <= MAX_ROW_CHARACTERS else None


def answer_digest(text: str) -> str:
    """Digest of an answer, by which an unchanged one is told from a correction; outer white space does not count."""
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode("utf-8", "replace")).hexdigest()[:32]


def shown_turns(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> list[Turn]:
    """The turns of a row that are shown to reviewers; a row that is not a conversation is shown as JSON.

    Args:
        row: A dataset row.
        columns: Column names by role, if the format cannot be recognised.

    Returns:
        Role and text of at most ``MAX_TURNS + 2`` turns, those around the scored answer among them, with little more
        than ``MAX_ROW_CHARACTERS`` in total; notes state what is omitted.
    """
    try:
        turns = display_turns(row, columns)
    except ConversationError:
        turns = [("row", _as_json(row))]
    turns = _without_middle_turns(turns, scored_answer(row, turns).index)
    total = sum(len(text) for _, text in turns)
    limit = MAX_ROW_CHARACTERS if total <= MAX_ROW_CHARACTERS else MAX_ROW_CHARACTERS // len(turns)
    return [(role, truncate_middle(text, limit)) for role, text in turns]


def chat_field(turns: list[Turn], opened: int | None = None) -> list[dict[str, str]]:
    """Chat messages of turns, within the server's limits and with their text escaped as HTML.

    Args:
        turns: Role and text of each turn, as returned by `shown_turns`.
        opened: Place of the answer at which the page opens: other turns than this and its request are folded; None
            folds none.

    Returns:
        At most 500 messages; roles have 1 to 20 characters, contents 1 to 20,000.
    """
    first, end = opening(turns, opened)
    return [
        *folded(turns[:first], 1, limit=MAX_MESSAGE_CHARACTERS),
        *(message for role, text in turns[first:end] for message in _messages(role, escape_html(text))),
        *folded(turns[end:], end + 1, limit=MAX_MESSAGE_CHARACTERS),
    ]


def _without_middle_turns(turns: list[Turn], scored: int | None) -> list[Turn]:
    """Replace turns of a conversation of more than ``MAX_TURNS`` by notes: neither its ends nor those by its score."""
    missing = len(turns) - MAX_TURNS
    if missing <= 0:
        return turns
    half, quarter = MAX_TURNS // 2, MAX_TURNS // 4
    if scored is None or scored < half or scored >= half + missing:
        return [*turns[:half], _note(missing), *turns[half + missing :]]
    start = min(max(scored - quarter, quarter), quarter + missing)
    before, after = start - quarter, quarter + missing - start
    middle = turns[start : start + half]
    notes = [[_note(count)] if count else [] for count in (before, after)]
    return [*turns[:quarter], *notes[0], *middle, *notes[1], *turns[start + half + after :]]


def _note(missing: int) -> Turn:
    return ("note", f"[… {missing:,} messages not shown here; the row itself is complete …]")


def _as_json(row: Mapping[str, Any]) -> str:
    source = {name: row[name] for name in source_columns(row)}
    return json.dumps(source, ensure_ascii=False, default=str, indent=1)


def _messages(role: str, content: str) -> list[dict[str, str]]:
    """One turn as one or more messages within the server's length limit; "(empty)" stands for empty content."""
    parts = split_html(content or "(empty)", MAX_MESSAGE_CHARACTERS)
    roles = [role] if len(parts) == 1 else [f"{role} {n}/{len(parts)}" for n in range(1, len(parts) + 1)]
    return [{"role": name, "content": part} for name, part in zip(roles, parts, strict=True)]


def _record_digest(shown: Record, vector: Vector | None) -> str:
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True, ensure_ascii=True).encode())
    if vector is not None:
        # Rounded: the last bits of a vector differ between machines and numpy versions.
        digest.update(np.round(vector, 4).tobytes())
    return digest.hexdigest()[:32]
