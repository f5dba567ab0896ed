"""The safe references of a profile that are nearest to flagged rows: what is fine, to the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from larf_curate.review.records.evidence import Nearest
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.vectors import unit_rows

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile

_BLOCK = 4096
"""Rows compared at once: bounds the memory."""


def nearest_safe(rows: FlaggedRows, profile: "SafetyProfile | None", texts: Sequence[str]) -> dict[str, Nearest]:
    """The nearest safe reference of each row, compared as the nearest unsafe exemplars are.

    Args:
        rows: Flagged rows with their states.
        profile: The profile that scored them.
        texts: Texts of its safe references, in order; without them, their numbers are shown.

    Returns:
        By row id; empty without states or profile, and without rows whose state is not finite.
    """
    if profile is None or rows.states is None or rows.states.shape[1] != profile.width:
        return {}
    safe, neutral = (profile.states[side]["last"][:, 0] for side in ("safe", "neutral"))
    centre = neutral.mean(axis=0)
    references = unit_rows(safe - centre)
    named = texts if len(texts) == len(references) else [f"number {n}" for n in range(1, len(references) + 1)]
    found = {}
    for start in range(0, len(rows), _BLOCK):
        units = unit_rows(rows.states[start : start + _BLOCK] - centre)
        cosines = units @ references.T
        for index in np.flatnonzero(units.any(axis=1)):
            best = int(cosines[index].argmax())
            nearest = Nearest(title="safe reference", text=named[best], cosine=float(cosines[index, best]))
            found[rows.ids[start + int(index)]] = nearest
    return found
