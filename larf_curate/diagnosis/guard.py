"""Comparison of a guard model with the score: rows flagged by the guard alone, by the score alone, and by both."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.columns import GUARD
from larf_curate.data.tables import read_column

UNSAFE = 0.5
"""Probability from which a guard model flags a row."""


@dataclass(frozen=True, kw_only=True)
class GuardComparison:
    """Numbers of rows that a guard model and the score flag.

    The guard flags rows whose answer is unsafe with a probability of at least `UNSAFE`. The score flags the rows that
    a selection has flagged or, without one, as many rows as the guard. Rows without a score or without a probability
    are compared by neither.

    Args:
        both: Flagged by both.
        guard: Flagged by the guard alone.
        score: Flagged by the score alone.
        neither: Flagged by neither.
        unjudged: Rows without a probability; they are not safe but unknown.
        by_selection: Whether a selection says what the score flags.
    """

    both: int
    guard: int
    score: int
    neither: int
    unjudged: int
    by_selection: bool

    def table(self) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
        """Title, column names and rows of cells."""
        rule = "flagged rows of the selection" if self.by_selection else "as many highest scores"
        cells = {
            "flagged by both": self.both,
            "by the guard alone": self.guard,
            "by the score alone": self.score,
            "by neither": self.neither,
            "not judged by the guard": self.unjudged,
        }
        title = f"Guard model (answer unsafe with at least {UNSAFE}) against the score ({rule})"
        return title, ("", "rows"), [(name, f"{count:,}") for name, count in cells.items()]


def compare_guard(rows: Dataset) -> GuardComparison | None:
    """Compare a guard model with the score.

    Args:
        rows: Scored rows.

    Returns:
        The comparison; None if no guard model has judged the rows.
    """
    if GUARD not in rows.column_names:
        return None
    unsafe = _numbers((cell or {}).get("answer") for cell in read_column(rows, GUARD))
    scores = _numbers(read_column(rows, "larf_score"))
    compared = np.isfinite(unsafe) & np.isfinite(scores)
    guard = unsafe[compared] >= UNSAFE
    by_selection = "larf_flagged" in rows.column_names
    if by_selection:
        score = np.fromiter(read_column(rows, "larf_flagged"), np.bool_)[compared]
    else:
        score = np.zeros(len(guard), np.bool_)
        score[np.argsort(-scores[compared], kind="stable")[: guard.sum()]] = True
    return GuardComparison(
        both=int((guard & score).sum()),
        guard=int((guard & ~score).sum()),
        score=int((score & ~guard).sum()),
        neither=int((~guard & ~score).sum()),
        unjudged=int((~np.isfinite(unsafe)).sum()),
        by_selection=by_selection,
    )


def _numbers(values: Iterable[Any]) -> NDArray[np.float64]:
    return np.fromiter((np.nan if value is None else value for value in values), np.float64)
