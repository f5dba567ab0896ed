"""Why a row is in front of a reviewer, in one sentence that is true of every signal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from larf_curate.signals.words import PLAIN_NAMES, in_words, standing

ADDED = "learned score"
"""Beginning of ``larf_reason`` of rows that were not flagged by their score, but added by what people decided."""
BY_AXES = (None, "combined", "erosion", "harmful")
"""Signals whose score is that of an axis or made of them; None is an unknown one."""


@dataclass(frozen=True)
class Rank:
    """Place of a row among the scored rows of its queue.

    Args:
        place: 1 for the highest score.
        of: Number of rows.
    """

    place: int
    of: int


def ranks(ids: Sequence[str], scores: NDArray[np.float64]) -> dict[str, Rank]:
    """Ranks of rows by score; of equal scores the first row comes first.

    Args:
        ids: Row ids, of length n.
        scores: Shape (n,); NaN and infinite values are no scores.

    Returns:
        Ranks by row id, without rows that have no score.
    """
    scored = np.flatnonzero(np.isfinite(scores))
    order = scored[np.argsort(-scores[scored], kind="stable")]
    return {ids[index]: Rank(place, len(order)) for place, index in enumerate(order.tolist(), 1)}


def reason(row: Mapping[str, Any], *, signal: str | None = None, rank: Rank | None = None) -> str:
    """Say in one sentence why a row is shown.

    Args:
        row: A flagged row; its ``larf_*`` columns may be missing or null.
        signal: Name of the signal of ``larf_score``, if it is known.
        rank: Place of the row in its queue.

    Returns:
        Such as "Harmful request, answered: request 3.2 standard deviations above ordinary rows; rank 1 of 33."; plain
        text, in which nothing is escaped.
    """
    if not is_number(row.get("larf_score")):
        return f"Not scored ({row.get('larf_status') or 'no score'}): look at the row itself."
    words = in_words(row.get("larf_signals"), figures=False)
    place = f"rank {rank.place:,} of {rank.of:,}" if rank else ""
    if str(row.get("larf_reason") or "").startswith(ADDED):
        why, place = "added for what people decided on similar rows", f"{place} by the machine's score" if place else ""
    else:
        why = _standing(row, signal) or _percentile(row)
    said = f"{words}: {why}" if words else why
    return f"{said[:1].upper()}{said[1:]}{'; ' if place else ''}{place}."


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def _standing(row: Mapping[str, Any], signal: str | None) -> str:
    """How far off ordinary rows it is, if its score says so too."""
    return standing(row.get("larf_signals"), names=PLAIN_NAMES) if signal in BY_AXES else ""


def _percentile(row: Mapping[str, Any]) -> str:
    """How many rows of the dataset score no higher; rounded down, so that it stays true."""
    percentile = row.get("larf_percentile")
    if not is_number(percentile):
        return f"score {row['larf_score']:.3f}"
    if percentile >= 100:
        return "the highest score of its dataset"
    return f"a score no lower than that of {math.floor(percentile * 10) / 10:.1f} % of its dataset"
