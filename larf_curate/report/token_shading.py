"""Shade the tokens of a row by their contribution to its score."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from larf_curate.columns import source_columns
from larf_curate.profile import SafetyProfile
from larf_curate.report.examples import Example
from larf_curate.report.scored_rows import ReportRows
from larf_curate.scoring.explanation import Explanation, explain

SHADES = 4
"""Number of shades in each direction; the style sheet of the page has a class for each."""
MAX_TOKENS = 600
"""Number of tokens shown per row."""


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
) -> dict[int, list[ShadedText]]:
    """Explain some rows with the model and shade their tokens.

    Args:
        profile: The profile that scored the rows.
        report_rows: The rows of the report.
        examples: The rows to shade.
        model: Model path, if it has moved since the profile was built.
        device: A torch device (default: the first accelerator available, else the CPU).

    Returns:
        Shaded text by the row's position; rows that cannot be scored are absent.

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
        position: _runs(explanation)
        for position, explanation in zip(positions, explanations, strict=True)
        if explanation is not None
    }


def _runs(explanation: Explanation) -> list[ShadedText]:
    """Join adjacent tokens of the same shade; shades are relative to the token with the largest weight in the row."""
    largest = max((abs(token.weight) for token in explanation.tokens), default=0.0) or 1.0
    pairs = [(token.text, round(SHADES * token.weight / largest)) for token in explanation.tokens[:MAX_TOKENS]]
    return [
        ShadedText("".join(text for text, _ in run), shade) for shade, run in groupby(pairs, key=lambda pair: pair[1])
    ]
