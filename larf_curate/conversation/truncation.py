"""Token positions of the turns of a conversation, and truncation of conversations that are too long."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""First character, and the one behind the last."""
WORD_CHARACTERS = 1000
"""Number of characters in which `shorten` looks for the end of a word."""


@dataclass(frozen=True)
class Turn:
    """Token positions of one assistant turn.

    Args:
        start: Index of the answer's first token; ``start - 1`` is the last token of its prompt. 0 for text without a
            prompt.
        end: Index of the turn's last token, end-of-turn tokens included.
    """

    start: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """One tokenized conversation.

    Args:
        ids: Token ids.
        turns: The assistant turns in order, at least one.
    """

    ids: list[int]
    turns: tuple[Turn, ...]


def truncate(tokens: Tokens, length: int) -> Tokens:
    """Remove the middle of a conversation, keeping a quarter of ``length`` at its start and three quarters at its end.

    The start holds the instructions, and the end the last answer. Turns that end in the gap are dropped; a turn that
    starts in the gap starts at the first token after it.

    Args:
        tokens: A conversation of more than ``length`` tokens.
        length: Number of tokens to keep.

    Returns:
        The remaining tokens, with turns at their new positions.
    """
    head = length // 4
    gap = len(tokens.ids) - length
    kept = [turn for turn in tokens.turns if turn.end < head or turn.end >= head + gap]
    shifted = [Turn(_shifted(turn.start, head, gap), _shifted(turn.end, head, gap)) for turn in kept]
    return Tokens(tokens.ids[:head] + tokens.ids[head + gap :], tuple(shifted))


def shorten(text: str, spans: Sequence[Span], side: int) -> tuple[str, list[Span | None]]:
    """Remove the middle and the end of a very long text, of which `truncate` would keep no token.

    So a text of any length is tokenized in bounded time and memory.

    Args:
        text: A rendered conversation.
        spans: Spans of characters of its turns, the last of which ends what is read.
        side: Least number of characters to keep at the start and before the end of the last span, and the most behind
            it. They must have more tokens than `truncate` keeps.

    Returns:
        The text, cut between words where there are any, and the spans at their new positions, None for those that are
        removed.
    """
    last = spans[-1][1]
    text = text[: last + side]
    if last <= 4 * side:
        return text, list(spans)
    reach = min(WORD_CHARACTERS, side)
    head, tail = _word_end(text, side, reach), _word_end(text, last - side - reach, reach)
    gap = tail - head
    kept = [None if head <= start and stop <= tail else _moved(start, stop, head, gap) for start, stop in spans]
    return text[:head] + text[tail:], kept


def _word_end(text: str, position: int, reach: int) -> int:
    """The next position at which a word ends, within ``reach`` characters; else the position itself."""
    found = re.compile(r"\s").search(text, position, position + reach)
    return found.start() if found else position


def _moved(start: int, stop: int, head: int, gap: int) -> Span:
    return _shifted(start, head, gap), _shifted(stop, head, gap)


def _shifted(position: int, head: int, gap: int) -> int:
    """Position of a token or character after ``gap`` of them from ``head`` on are removed."""
    return position if position < head else max(position - gap, head)
