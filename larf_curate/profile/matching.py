"""Reference answers of one length: where one side of a pair is much longer, a score learns length instead of safety."""

from collections.abc import Sequence
from dataclasses import dataclass

from larf_curate.conversation.chat_template import Tokenizer
from larf_curate.conversation.schemas import Row, to_conversation, to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ConversationError

LONGER = 1.5
"""An answer with over so many times its counterpart's tokens is cut to their number."""


@dataclass(frozen=True, kw_only=True)
class Matched:
    """References whose answers are about as long on both sides.

    Args:
        unsafe: Unsafe rows in their order.
        safe: Safe rows in their order.
        cut: How many of each side were cut.
    """

    unsafe: tuple[Row, ...]
    safe: tuple[Row, ...]
    cut: dict[str, int]


def match_lengths(refs: ReferenceSet, tokenizer: Tokenizer) -> Matched:
    """Cut the last answer of a reference that is much longer than its counterpart's to that one's number of tokens.

    The counterpart is the row of the same place on the other side, which starts over where it is the shorter one. A
    row that is not a conversation with an answer stays as it is.

    Args:
        refs: The references.
        tokenizer: A fast tokenizer.
    """
    ends = [[_token_ends(row, tokenizer) for row in side] for side in (refs.unsafe, refs.safe)]
    unsafe, safe = (
        [_cut(row, mine[i], len(other[i % len(other)])) for i, row in enumerate(side)]
        for side, mine, other in ((refs.unsafe, ends[0], ends[1]), (refs.safe, ends[1], ends[0]))
    )
    cut = {
        name: sum(new is not old for new, old in zip(rows, side, strict=True))
        for name, rows, side in (("unsafe", unsafe, refs.unsafe), ("safe", safe, refs.safe))
    }
    return Matched(unsafe=tuple(unsafe), safe=tuple(safe), cut=cut)


def _token_ends(row: Row, tokenizer: Tokenizer) -> list[int]:
    """Where each token of the last answer ends, in characters; empty without an answer."""
    answer = _answer(row)
    if not answer:
        return []
    offsets = tokenizer([answer], add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0]
    return [int(end) for _, end in offsets]


def _cut(row: Row, ends: Sequence[int], wanted: int) -> Row:
    if not wanted or len(ends) <= LONGER * wanted:
        return row
    conversation = to_conversation(row)
    *before, last = conversation.messages
    kept = last["content"][: ends[wanted - 1]].rstrip()
    return {"text": kept} if conversation.text is not None else {"messages": [*before, {**last, "content": kept}]}


def _answer(row: Row) -> str:
    try:
        last = to_messages(row)[-1]
    except ConversationError:
        return ""
    return last["content"] if last["role"] == "assistant" else ""
