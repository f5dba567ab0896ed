"""The tokens of a row, shaded by how far each moved its score."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from larf_curate.profile import SafetyProfile
from larf_curate.report.examples import Example
from larf_curate.report.scored_rows import Source
from larf_curate.scoring.explanation import Explanation, explain

SHADES = 4
SHOWN = 600
"""Most tokens of a row that the page shows."""


@dataclass(frozen=True)
class Shaded:
    """A run of text of one shade.

    Args:
        text: The text.
        shade: From -4, strongly away from unsafe, by 0, no shade, to 4.
    """

    text: str
    shade: int


def shaded(
    profile: SafetyProfile,
    source: Source,
    examples: Sequence[Example],
    *,
    model: str | None = None,
    device: str | None = None,
) -> dict[int, list[Shaded]]:
    """Shade the tokens of some rows.

    Args:
        profile: What scored them.
        source: The rows.
        examples: Those of them to shade.
        model: Where the model lies now, if not where it lay.
        device: A torch device; the first accelerator there is, if left out.

    Returns:
        Runs of text by the row's position; none for a row that cannot be scored again.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If it is not the profile's.
    """
    if not examples:
        return {}
    places = [example.position for example in examples]
    rows = source.rows.with_format(None).select(places)
    own = [name for name in rows.column_names if not name.startswith("larf_")]
    found = explain(profile, list(rows.select_columns(own)), columns=source.columns, model=model, device=device)
    return {place: _runs(item) for place, item in zip(places, found, strict=True) if item is not None}


def _runs(item: Explanation) -> list[Shaded]:
    """Neighbouring tokens of one shade as one; the strongest token of the row has the strongest shade."""
    largest = max((abs(token.weight) for token in item.tokens), default=0.0) or 1.0
    pairs = [(token.text, round(SHADES * token.weight / largest)) for token in item.tokens[:SHOWN]]
    return [Shaded("".join(text for text, _ in run), shade) for shade, run in groupby(pairs, key=lambda pair: pair[1])]
