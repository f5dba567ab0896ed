"""Token positions of the turns of a conversation, and truncation of conversations that are too long."""

from dataclasses import dataclass


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


def _shifted(position: int, head: int, gap: int) -> int:
    """Position of a token after ``gap`` tokens from ``head`` on are removed."""
    return position if position < head else max(position - gap, head)
