"""Matching the lengths of reference answers: if one side were much longer, scores would measure length, not safety."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from larf_curate.conversation.messages import text_of
from larf_curate.conversation.schemas import MORE_ARGUMENTS, Row, to_conversation, to_messages
from larf_curate.conversation.templates import Tokenizer
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ConversationError

MAX_LENGTH_RATIO = 1.5
"""An answer with more than this many times its counterpart's tokens is cut to their number."""


@dataclass(frozen=True, kw_only=True)
class MatchedReferences:
    """References whose answers have similar lengths on both sides.

    Args:
        unsafe: Unsafe rows in their order.
        safe: Safe rows in their order.
        cut: Number of cut answers by side.
    """

    unsafe: tuple[Row, ...]
    safe: tuple[Row, ...]
    cut: dict[str, int]


def match_lengths(
    refs: ReferenceSet, tokenizer: Tokenizer, *, columns: Mapping[str, str] | None = None
) -> MatchedReferences:
    """Cut last answers that are much longer than their counterpart's to its number of tokens.

    The counterpart is the row with the same index on the other side, modulo that side's number of rows. Rows that are
    not conversations with an answer are unchanged.

    Args:
        refs: The references.
        tokenizer: A fast tokenizer.
        columns: Column names by role; default: inferred from the rows.
    """
    ends = [[_token_ends(row, tokenizer, columns) for row in side] for side in (refs.unsafe, refs.safe)]
    unsafe, safe = (
        [_truncate(row, mine[i], len(other[i % len(other)]), columns) for i, row in enumerate(side)]
        for side, mine, other in ((refs.unsafe, ends[0], ends[1]), (refs.safe, ends[1], ends[0]))
    )
    cut = {
        name: sum(new is not old for new, old in zip(rows, side, strict=True))
        for name, rows, side in (("unsafe", unsafe, refs.unsafe), ("safe", safe, refs.safe))
    }
    return MatchedReferences(unsafe=tuple(unsafe), safe=tuple(safe), cut=cut)


def _token_ends(row: Row, tokenizer: Tokenizer, columns: Mapping[str, str] | None) -> list[int]:
    """End of each token of the last answer, in characters; empty if there is no answer."""
    answer = _answer(row, columns)
    if not answer:
        return []
    offsets = tokenizer([answer], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0]
    return [int(end) for _, end in offsets]


def _truncate(row: Row, ends: Sequence[int], length: int, columns: Mapping[str, str] | None) -> Row:
    """Cut the last answer to ``length`` tokens if it is much longer; the same object if it is not."""
    if not length or len(ends) <= MAX_LENGTH_RATIO * length:
        return row
    conversation = to_conversation(row, columns)
    *before, last = conversation.messages
    # Cut at a character offset: decoding tokens would not always give the original characters.
    kept = text_of(last)[: ends[length - 1]].rstrip()
    if conversation.text is not None:
        return {"text": kept}
    return {"messages": [*before, {**last, "content": kept}], MORE_ARGUMENTS: dict(conversation.arguments)}


def _answer(row: Row, columns: Mapping[str, str] | None) -> str:
    """The last answer of a row; empty if there is none."""
    try:
        last = to_messages(row, columns)[-1]
    except ConversationError:
        return ""
    return last["content"] if last["role"] == "assistant" else ""
