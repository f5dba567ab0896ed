"""Scores of references and neutral rows by signals that were made without them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from larf_curate.errors import ReferenceSetError
from larf_curate.signals.protocol import Fit, ReferenceStates
from larf_curate.states import States, Vectors

FOLDS = 5
Sides = Sequence[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Scores of shape (n, layers) of each side; empty for a side that was not left out."""

    unsafe: Vectors
    safe: Vectors
    neutral: Vectors


def held_out(fit: Fit, refs: ReferenceStates, *, sides: Sides = ("unsafe", "safe", "neutral")) -> HeldOut:
    """Score every row of some sides by a signal made from the others, in five folds.

    A pair of references lies in one fold where both sides are as long.

    Args:
        fit: Makes the signal.
        refs: At least 2 rows of every side that is left out.
        sides: The sides left out a fold at a time; the others are kept whole.

    Returns:
        The scores, rows in their order.

    Raises:
        ReferenceSetError: If a side has too few rows.
    """
    counts = {side: len(next(iter(getattr(refs, side).values()))) for side in sides}
    if min(counts.values()) < 2:
        raise ReferenceSetError(f"wanted at least 2 rows of each side to judge a signal by, got {counts}")
    folds = min(FOLDS, *counts.values())
    places = {side: fold_of(count, folds) for side, count in counts.items()}
    parts: dict[str, dict[int, Vectors]] = {side: {} for side in sides}
    for fold in range(folds):
        signal = fit(_without(refs, places, fold))
        for side in sides:
            left_out = np.flatnonzero(places[side] == fold)
            parts[side] |= dict(zip(left_out, signal(_rows(getattr(refs, side), left_out)), strict=True))
    layers = next(iter(refs.unsafe.values())).shape[1]
    scores = {side: np.stack([found[row] for row in sorted(found)]) for side, found in parts.items()}
    empty = np.zeros((0, layers), np.float32)
    return HeldOut(**{"unsafe": empty, "safe": empty, "neutral": empty, **scores})


def fold_of(count: int, folds: int = FOLDS) -> NDArray[np.intp]:
    """Number of the fold that each of some rows lies in, shape (count,)."""
    numbers = np.zeros(count, np.intp)
    for fold, (_, left_out) in enumerate(KFold(folds, shuffle=True, random_state=0).split(np.empty(count))):
        numbers[left_out] = fold
    return numbers


def _without(refs: ReferenceStates, places: dict[str, NDArray[np.intp]], fold: int) -> ReferenceStates:
    sides = {side: getattr(refs, side) for side in ("unsafe", "safe", "neutral")}
    for side, place in places.items():
        sides[side] = _rows(sides[side], np.flatnonzero(place != fold))
    pairs = len(next(iter(sides["unsafe"].values())))
    return ReferenceStates(**sides, top_k=None if refs.top_k is None else min(refs.top_k, pairs))


def _rows(side: States, rows: NDArray[np.intp]) -> States:
    return {position: values[rows] for position, values in side.items()}
