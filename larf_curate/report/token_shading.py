"""Shade the tokens of a row by their contribution to its score, in the turns of its conversation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from os.path import commonprefix

from larf_curate.columns import source_columns
from larf_curate.profile import SafetyProfile
from larf_curate.report.examples import Example
from larf_curate.report.scored_rows import ReportRows
from larf_curate.scoring.explanation import Explanation, explain

SHADES = 4
"""Number of shades in each direction; the style sheet of the page has a class for each."""
MAX_TOKENS = 600
"""Number of tokens shaded per row."""
ANCHOR = 24
"""Characters of a turn by which its beginning is found among the tokens."""


@dataclass(frozen=True)
class ShadedText:
    """Adjacent tokens of the same shade.

    Args:
        text: Text of the tokens.
        shade: Integer in [-4, 4]: positive raises the score (towards unsafe), negative lowers it, 0 is not shaded.
    """

    text: str
    shade: int


def shade_tokens(
    profile: SafetyProfile,
    report_rows: ReportRows,
    examples: Sequence[Example],
    *,
    model: str | None = None,
    device: str | None = None,
) -> dict[int, Example]:
    """Explain some rows with the model and shade the tokens of their turns.

    Args:
        profile: The profile that scored the rows.
        report_rows: The rows of the report.
        examples: The rows to shade.
        model: Model path, if it has moved since the profile was built.
        device: A torch device (default: the first accelerator available, else the CPU).

    Returns:
        The rows with shaded turns by position; rows that cannot be scored are absent.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If ``model`` is not the model of the profile.
    """
    if not examples:  # do not load the model for nothing
        return {}
    positions = [example.position for example in examples]
    # Without the user's format (numpy, torch, ...), and without our columns: the scorer takes rows as in the source.
    rows = report_rows.rows.with_format(None).select(positions)
    source = rows.select_columns(source_columns(rows.column_names))
    explanations = explain(profile, list(source), columns=report_rows.columns, model=model, device=device)
    return {
        example.position: shaded_example(example, explanation)
        for example, explanation in zip(examples, explanations, strict=True)
        if explanation is not None
    }


def shaded_example(example: Example, explanation: Explanation) -> Example:
    """Shade the turns of a row.

    The text of the tokens has that of the turns in order, with the chat template's own text between them. The end of
    it may be missing: the score is that of the highest-scoring turn, and at most `MAX_TOKENS` tokens are shaded. The
    weights of all tokens that are in no shown turn are added up as ``elsewhere``.
    """
    largest = max((abs(token.weight) for token in explanation.tokens), default=0.0) or 1.0
    characters = [
        (character, round(SHADES * token.weight / largest))
        for token in explanation.tokens[:MAX_TOKENS]
        for character in token.text
    ]
    text, turns, spans, start = "".join(character for character, _ in characters), [], [], 0
    for turn in (*example.first_turns, *example.last_turns):
        span = _find(turn.text.head, text, start)
        start = span.stop
        spans.append(span)
        turns.append(replace(turn, shaded=tuple(_runs(turn.text.head, characters[span.start : span.stop]))))
    first = len(example.first_turns)
    return replace(
        example,
        first_turns=turns[:first],
        last_turns=turns[first:],
        elsewhere=_weight_outside(explanation, spans),
    )


def _find(turn: str, text: str, start: int) -> range:
    """Places of the beginning of a turn in the text of the tokens, as far as both agree; empty if it is not there."""
    shown = turn.strip()  # chat templates strip messages
    found = text.find(shown[:ANCHOR], start) if shown else -1
    if found < 0 and shown.startswith(text[start:]):  # the text ends within the first characters of the turn
        found = start
    return range(found, found + len(commonprefix([shown, text[found:]]))) if found >= 0 else range(start, start)


def _runs(turn: str, characters: Sequence[tuple[str, int]]) -> Iterator[ShadedText]:
    """Join adjacent characters of the same shade; what surrounds the shaded ones in the turn is not shaded."""
    before = len(turn) - len(turn.lstrip()) if characters else 0
    plain = [(turn[:before], 0)] if before else []
    rest = [(turn[before + len(characters) :], 0)]
    for shade, run in groupby([*plain, *characters, *rest], key=lambda pair: pair[1]):
        if text := "".join(part for part, _ in run):
            yield ShadedText(text, shade)


def _weight_outside(explanation: Explanation, spans: Sequence[range]) -> float:
    """Sum of the weights of the tokens that begin in none of the shown spans."""
    total, place = 0.0, 0
    for index, token in enumerate(explanation.tokens):
        shown = index < MAX_TOKENS and any(place in span for span in spans)
        total += 0 if shown else token.weight
        place += len(token.text)
    return total
