"""Spans that a chat template itself marks for training with ``{% generation %}``: which messages they belong to.

Trainers that learn answers alone, as TRL with ``assistant_only_loss``, learn exactly these spans: they are the turns.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from larf_curate.conversation.messages import Message, UnsupportedContentError, is_learned, text_of
from larf_curate.conversation.truncation import Span


@dataclass(frozen=True)
class Blocks:
    """The marked spans of a rendered conversation, in order.

    Args:
        learned: Spans that are learned.
        excluded: Spans of answers that a flag of the row excludes from training.
        answers: Indices of the assistant messages with learned spans.
        mark_others: Whether learned spans have text of messages that are no answers.
    """

    learned: list[Span]
    excluded: tuple[Span, ...]
    answers: list[int]
    mark_others: bool


def assign(blocks: Sequence[Span], turns: Mapping[int, Span], messages: Sequence[Message], text: str) -> Blocks:
    """Assign marked spans to the messages that they belong to.

    Args:
        blocks: Spans that the template marks, of which empty ones are ignored.
        turns: Span of each assistant message that was found, by the message's index.
        messages: The conversation.
        text: The messages, rendered.

    Raises:
        UnsupportedContentError: If a span has learned and excluded answers, or none has a learned one.
    """
    learned: dict[Span, list[int]] = {}
    excluded: list[Span] = []
    for block, owners in _with_owners(blocks, turns, messages):
        if len(kinds := {is_learned(messages[index]) for index in owners}) == 2:
            raise UnsupportedContentError(
                "wanted a {% generation %} block of the chat template for each answer, got one that has learned and "
                "excluded answers (weight, train or loss 0): remove these flags, or pass another template"
            )
        if False in kinds:
            excluded.append(block)
        else:
            learned[block] = owners
    answers = sorted({index for owners in learned.values() for index in owners})
    if not answers:
        raise UnsupportedContentError(
            "wanted a learned answer that the chat template marks with {% generation %}, got none: trainers would "
            "learn nothing of the row"
        )
    others = {text_of(message).strip() for message in messages if message["role"] != "assistant"} - {""}
    outside = [part for block, owners in learned.items() for part in _outside(block, owners, turns, text)]
    mark_others = any(other in part for part in outside for other in others)
    return Blocks(list(learned), tuple(excluded), answers, mark_others)


def _with_owners(
    blocks: Sequence[Span], turns: Mapping[int, Span], messages: Sequence[Message]
) -> list[tuple[Span, list[int]]]:
    """Each span with the indices of its assistant messages, none if it is no answer's.

    Spans of one message that touch are joined. A span outside all turns belongs to the answers that were not found, if
    there are any.
    """
    not_found = [
        index for index, message in enumerate(messages) if message["role"] == "assistant" and index not in turns
    ]
    found: list[tuple[Span, list[int]]] = []
    for start, stop in sorted(block for block in blocks if block[0] < block[1]):
        owners = [index for index, (first, end) in turns.items() if start < end and first < stop]
        owners = owners or [index for index, (first, _) in turns.items() if first == stop] or not_found  # a header
        if found and len(owners) == 1 and found[-1][1] == owners and start <= found[-1][0][1]:
            (first, end), _ = found.pop()
            start, stop = first, max(end, stop)
        found.append(((start, stop), owners))
    return found


def _outside(block: Span, owners: Sequence[int], turns: Mapping[int, Span], text: str) -> Iterator[str]:
    """The parts of a marked text that are in no turn of its owners."""
    cursor, stop = block
    for first, end in sorted(turns[index] for index in owners if index in turns):
        yield text[cursor : max(first, cursor)]
        cursor = max(cursor, end)
    yield text[cursor:stop]
