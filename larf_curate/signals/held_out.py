"""Cross-validated scores: references and neutral rows scored by signals that were fitted without them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from larf_curate.errors import ReferenceSetError
from larf_curate.signals.protocol import Fit, ReferenceStates
from larf_curate.states import States, Vectors

FOLDS = 5
"""Folds at most; fewer where a side has fewer rows."""
Sides = Sequence[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Held-out scores of shape (n, layers) of each side; empty for a side that was not held out."""

    unsafe: Vectors
    safe: Vectors
    neutral: Vectors


def held_out(fit: Fit, refs: ReferenceStates, *, sides: Sides = ("unsafe", "safe", "neutral")) -> HeldOut:
    """Score every row of some sides by a signal that was fitted without it, in up to five folds.

    The unsafe and the safe reference of a pair are held out together if both sides have equally many rows.

    Args:
        fit: Makes the signal.
        refs: At least 2 rows of every side that is held out.
        sides: The sides that are held out fold by fold; the others are used completely in every fit.

    Returns:
        The scores, rows in their order.

    Raises:
        ReferenceSetError: If a side has too few rows.
    """
    counts = {side: len(next(iter(getattr(refs, side).values()))) for side in sides}
    if min(counts.values()) < 2:
        raise ReferenceSetError(f"wanted at least 2 rows per side for held-out scores, got {counts}: add rows")
    folds = min(FOLDS, *counts.values())
    fold_numbers = {side: fold_of(count, folds) for side, count in counts.items()}
    by_row: dict[str, dict[int, Vectors]] = {side: {} for side in sides}
    for fold in range(folds):
        signal = fit(_without(refs, fold_numbers, fold))
        for side in sides:
            rows = np.flatnonzero(fold_numbers[side] == fold)
            by_row[side] |= dict(zip(rows, signal(_rows(getattr(refs, side), rows)), strict=True))
    layers = next(iter(refs.unsafe.values())).shape[1]
    scores = {side: np.stack([found[row] for row in sorted(found)]) for side, found in by_row.items()}
    empty = np.zeros((0, layers), np.float32)
    return HeldOut(**{"unsafe": empty, "safe": empty, "neutral": empty, **scores})


def fold_of(count: int, folds: int = FOLDS) -> NDArray[np.intp]:
    """Fold number of each row, shape (count,): a fixed random partition that depends on the two counts alone."""
    from sklearn.model_selection import KFold  # takes a second, which not all commands need

    numbers = np.zeros(count, np.intp)
    for fold, (_, members) in enumerate(KFold(folds, shuffle=True, random_state=0).split(np.empty(count))):
        numbers[members] = fold
    return numbers


def _without(refs: ReferenceStates, fold_numbers: dict[str, NDArray[np.intp]], fold: int) -> ReferenceStates:
    """The references without one fold of the held-out sides."""
    sides = {side: getattr(refs, side) for side in ("unsafe", "safe", "neutral")}
    for side, numbers in fold_numbers.items():
        sides[side] = _rows(sides[side], np.flatnonzero(numbers != fold))
    # top_k may be as large as the number of all pairs, of which some are held out now.
    pairs = len(next(iter(sides["unsafe"].values())))
    return replace(refs, **sides, top_k=None if refs.top_k is None else min(refs.top_k, pairs))


def _rows(side: States, rows: NDArray[np.intp]) -> States:
    return {position: values[rows] for position, values in side.items()}
