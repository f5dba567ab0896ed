"""Turns of long conversations, folded so that the page opens at the answer that has the score; nothing is left out."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

from larf_curate.review.records.escaping import escape_html, split_html

SHORT = 400
"""Characters of other turns, together, that are not worth folding."""
_QUOTED = 100
_OVERHEAD = 1_000
"""More characters than folding adds to a message."""
_TURN = re.compile(r"([1-9]\d*)/([1-9]\d*)")
_FOLDED = "<details><summary>"


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """Which answer of a conversation has the score.

    Args:
        index: Its place among the turns that are shown; None if that is not certain.
        said: A sentence about it; empty if there is only one answer, or nothing is known.
    """

    index: int | None = None
    said: str = ""


def scored_answer(row: Mapping[str, Any], turns: Sequence[tuple[str, str]]) -> ScoredAnswer:
    """The answer that ``larf_turn`` names.

    Not all answers of a row need be scored: a flag can exclude some from training, and the middle of a truncated row is
    not read. Then only their number is known.

    Args:
        row: A flagged row.
        turns: Role and text of its turns, as they are shown.
    """
    found = _TURN.fullmatch(str(row.get("larf_turn") or ""))
    if not found:
        return ScoredAnswer()
    number, of = int(found[1]), int(found[2])
    answers = [index for index, (role, _) in enumerate(turns) if role == "assistant"]
    if row.get("larf_status") != "ok" or len(answers) != of or number > of:
        return ScoredAnswer(said=f"The score is that of answer {number} of the {of} that are scored.")
    index = answers[number - 1]
    asked = next((text for role, text in reversed(turns[:index]) if role == "user"), "")
    request = f" to “{_quoted(asked)}”" if asked else ""
    # The corrected answer replaces the last one: without a word, an edit of this one would land there.
    edited = f". An edit replaces answer {of}, not this one" if number < of else ""
    said = f"Scored: answer {number} of {of}, “{_quoted(turns[index][1])}”{request}{edited}"
    return ScoredAnswer(index=index, said=said)


def opening(turns: Sequence[tuple[str, str]], index: int | None) -> tuple[int, int]:
    """The turns to show unfolded: from the request that an answer is to, up to this answer.

    Args:
        turns: Role and text of each turn.
        index: Place of the answer; None if it is not known.

    Returns:
        First turn, and the one behind the last; all turns if the answer is not known or the others are short.
    """
    if index is None:
        return 0, len(turns)
    first = next((i for i in reversed(range(index)) if turns[i][0] == "user"), index)
    others = sum(len(text) for _, text in (*turns[:first], *turns[index + 1 :]))
    return (first, index + 1) if others > SHORT else (0, len(turns))


def folded(turns: Sequence[tuple[str, str]], first: int, *, limit: int) -> Iterator[dict[str, str]]:
    """Chat messages in which turns are folded together, complete and with their text escaped as HTML.

    Args:
        turns: Role and text of each turn.
        first: Number of the first one in its conversation, from 1.
        limit: Most characters of a message.
    """
    gathered: list[tuple[int, str]] = []
    for number, (role, text) in enumerate(turns, first):
        parts = split_html(escape_html(text) or "(empty)", limit - _OVERHEAD)
        for part in parts:
            piece = f"<b>{escape_html(role)}</b>\n{part}"
            if gathered and sum(len(each) for _, each in gathered) + len(piece) > limit - _OVERHEAD:
                yield _message(gathered)
                gathered = []
            gathered.append((number, piece))
    if gathered:
        yield _message(gathered)


def is_folded(content: str) -> bool:
    """Whether the content of a message was made by `folded`: the text of a row cannot have a tag."""
    return content.startswith(_FOLDED)


def _message(gathered: Sequence[tuple[int, str]]) -> dict[str, str]:
    numbers = [number for number, _ in gathered]
    role = f"turn {numbers[0]}" if numbers[0] == numbers[-1] else f"turns {numbers[0]}–{numbers[-1]}"
    beginning = _quoted(unescape(gathered[0][1].partition("\n")[2]))
    content = "\n\n".join(piece for _, piece in gathered)
    return {"role": role, "content": f"{_FOLDED}{escape_html(beginning)}</summary>{content}</details>"}


def _quoted(text: str) -> str:
    words = " ".join(text[: 10 * _QUOTED].split())
    return words if len(words) <= _QUOTED else words[: _QUOTED - 1] + "…"
