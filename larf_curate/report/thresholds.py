"""The scores of all rows, packed into a page: how many a threshold would flag."""

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.report.statistics import Floats

EXACT = 100_000
"""Number of highest scores that are all packed, so that counts up to it are exact."""
SPREAD = 100_000
"""Maximum number of scores that are packed of the others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RankTable:
    """Scores in falling order: the highest ones all, and every ``step``-th of the others.

    Args:
        exact: Number of highest scores that are all here.
        step: Distance in ranks of the scores after these; 1 if all scores are here.
        scores: The scores, in falling order.
    """

    exact: int
    step: int
    scores: NDArray[Any]

    @classmethod
    def of(cls, scores: Floats) -> "RankTable":
        """Build the table of the finite scores among these, shape (n,)."""
        ordered = np.sort(scores[np.isfinite(scores)])[::-1]
        step = max(1, -(-(len(ordered) - EXACT) // SPREAD))
        kept = np.concatenate([ordered[:EXACT], ordered[EXACT + step - 1 :: step]])
        return cls(exact=min(EXACT, len(ordered)), step=step, scores=kept)

    def count(self, threshold: float) -> tuple[int, int]:
        """Lowest and highest possible number of scores at or above a threshold; equal if it is known exactly."""
        reached = int((self.scores >= threshold).sum())
        if reached < self.exact or self.step == 1:
            return reached, reached
        low = self.exact + (reached - self.exact) * self.step
        return low, low + self.step - 1

    def to_json(self) -> dict[str, Any]:
        """JSON values, with the scores in base64: as float32 if that is what they are, else as float64."""
        narrow = self.scores.astype("<f4")
        packed = narrow if np.array_equal(narrow, self.scores) else self.scores.astype("<f8")
        encoded = base64.b64encode(packed.tobytes()).decode()
        return {"exact": self.exact, "step": self.step, "bytes": packed.itemsize, "scores": encoded}
