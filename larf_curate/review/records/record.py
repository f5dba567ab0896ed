"""One flagged row as the record that the Argilla server stores."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.columns import content_digest
from larf_curate.conversation.schemas import to_messages
from larf_curate.errors import ConversationError
from larf_curate.review.argilla.settings import CLUSTER, SCORE, VECTOR
from larf_curate.review.records.escaping import html_literal, misleads, pieces, shortened
from larf_curate.review.records.evidence import evidence, is_number
from larf_curate.review.records.near_duplicates import Group

SHOWN_MESSAGES = 400
"""The server takes 500; the rest is room for long messages, which are shown as several."""
MESSAGE_CHARACTERS = 20_000
"""The server's limit of characters in a message; a longer one is shown as several."""
ROW_CHARACTERS = 200_000
"""More than a reviewer reads and a browser lays out; longer conversations are shortened, visibly."""

MISLEADING = "**Careful:** the text forces its own direction (U+202D, U+202E): it reads differently than it looks."
CONTENT = "content_digest"
RECORD = "record_digest"
OUTDATED = "outdated_responses"
SHARED = "decided_together"

Record = dict[str, Any]
Turn = tuple[str, str]
Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class RecordMaker:
    """Makes records out of rows.

    Args:
        columns: Column names by role, where the rows' format is not found from the names alone.
        layers: The blocks of ``larf_layer_scores``, in its order.
        signal: Name of the signal that made ``larf_score``.
        split: Name of the split that the rows come from.
        exemplars: Texts of exemplars by id.
        vectors: Reduced states for *find similar* by row id, shape (k,); a row whose vector is zero gets none.
        groups: Groups of near-identical rows by the id of each row in one.
    """

    columns: Mapping[str, str] | None = None
    layers: Sequence[int] | None = None
    signal: str | None = None
    split: str | None = None
    exemplars: Mapping[str, str] | None = None
    vectors: Mapping[str, Vector] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)

    def __call__(self, row: Mapping[str, Any]) -> Record:
        """Make the record of one row; its metadata carries the digests of the row's content and of all that is shown.

        Args:
            row: A flagged row with ``larf_row_id``.
        """
        turns = shown_turns(row, self.columns)
        group = self.groups.get(row["larf_row_id"])
        explained = evidence(row, layers=self.layers, exemplars=self.exemplars, group=group)
        if any(misleads(text) for _, text in turns):
            explained = f"{MISLEADING}\n\n{explained}"
        shown: Record = {
            "fields": {"conversation": chat_field(turns), "evidence": explained},
            "metadata": self._metadata(row, turns, group),
        }
        vector = self.vectors.get(row["larf_row_id"])
        digests = {CONTENT: content_digest(row), RECORD: _digest(shown, vector)}
        if vector is not None and vector.any():
            shown["vectors"] = {VECTOR: np.round(vector.astype(np.float64), 5).tolist()}
        return {"external_id": row["larf_row_id"], **shown, "metadata": shown["metadata"] | digests}

    def _metadata(self, row: Mapping[str, Any], turns: list[Turn], group: Group | None) -> Record:
        """The properties to filter and sort by; a missing number is left out, since null and NaN are refused."""
        shared = {SHARED: dict(group.shared)} if group and group.shared else {}
        numbers = {SCORE: row.get("larf_score"), "percentile": row.get("larf_percentile")}
        terms = {"signal": self.signal, "split": self.split, "status": row.get("larf_status")}
        terms |= {CLUSTER: group.name if group else None}
        length = sum(len(text) for _, text in turns)
        known = {name: float(value) for name, value in numbers.items() if is_number(value)}
        return known | {name: value for name, value in terms.items() if value} | {"length": length} | shared


def shown_turns(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> list[Turn]:
    """A row's conversation as much of it as is shown; a row that is not a conversation is shown as JSON.

    Args:
        row: A dataset row.
        columns: Column names by role.

    Returns:
        Role and text of at most 401 turns and, together, little more than ``ROW_CHARACTERS``.
    """
    try:
        turns = [(message["role"], _content(message)) for message in to_messages(row, columns)]
    except ConversationError:
        turns = [("row", _as_json(row))]
    turns = _fewer(turns)
    total = sum(len(text) for _, text in turns)
    limit = ROW_CHARACTERS if total <= ROW_CHARACTERS else ROW_CHARACTERS // len(turns)
    return [(role, shortened(text, limit)) for role, text in turns]


def chat_field(turns: list[Turn]) -> list[dict[str, str]]:
    """Turns as chat messages within the server's limits, their text as HTML that shows it literally.

    Returns:
        At most 500 messages with a role of 1-20 characters and content of 1-20,000.
    """
    return [part for role, text in turns for part in _parts(role, html_literal(text))]


def _fewer(messages: list[Turn]) -> list[Turn]:
    """Leave out the middle of a conversation of more than ``SHOWN_MESSAGES`` turns, and say so there."""
    missing = len(messages) - SHOWN_MESSAGES
    if missing <= 0:
        return messages
    half = SHOWN_MESSAGES // 2
    note = ("note", f"[… {missing:,} messages not shown here; the row itself is whole …]")
    return [*messages[:half], note, *messages[half + missing :]]


def _content(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    text = str(message["content"])
    return f"{text}\n{json.dumps(calls, ensure_ascii=False, default=str)}".strip() if calls else text


def _as_json(row: Mapping[str, Any]) -> str:
    source = {name: value for name, value in row.items() if not name.startswith("larf_")}
    return json.dumps(source, ensure_ascii=False, default=str, indent=1)


def _parts(role: str, content: str) -> list[dict[str, str]]:
    """A message as one or more within the server's length limit; empty content becomes a visible mark."""
    cut = pieces(content or "(empty)", MESSAGE_CHARACTERS)
    names = [role] if len(cut) == 1 else [f"{role} {n}/{len(cut)}" for n in range(1, len(cut) + 1)]
    return [{"role": name, "content": piece} for name, piece in zip(names, cut, strict=True)]


def _digest(shown: Record, vector: Vector | None) -> str:
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True, ensure_ascii=True).encode())
    if vector is not None:
        digest.update(np.round(vector, 4).tobytes())
    return digest.hexdigest()[:32]
