"""Logistic regression whose priors are the machine's ranking."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from larf_curate.review.learning.inputs import Floats, References, StoredRows
from larf_curate.review.learning.space import Space

EVEN = 2.0
"""Standard deviations above the median score at which the machine's odds are even."""
STATE_SPREAD = 4.0
"""Standard deviation, a priori, of the log odds that a row's state adds."""
DOUBT = 0.05
"""Share of clicks that may be wrong."""
REFERENCE_WEIGHT = 10.0
"""How many decisions the references count as, altogether."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Regression:
    """Logistic regression with a Gaussian prior on every weight; the first feature is the constant.

    Args:
        features: Of all rows, shape (n, p).
        mean: What each weight is a priori, shape (p,).
        spread: Its standard deviation a priori, shape (p,).
        anchors: Features of the references, shape (r, p).
        anchor_targets: 1 for unsafe ones, 0 for the others.
        anchor_weights: What each counts; 10 together.
        unit: Standard deviation of the scores.
    """

    features: NDArray[np.float32]
    mean: Floats
    spread: Floats
    anchors: Floats
    anchor_targets: Floats
    anchor_weights: Floats
    unit: float

    @classmethod
    def of(
        cls, rows: StoredRows, directions: NDArray[np.float32], space: Space, references: References | None
    ) -> "Regression":
        """Of all rows, their states already projected.

        Args:
            rows: The rows.
            directions: Their states in the space, shape (n, k).
            space: The space, for the references.
            references: Those of the profile.
        """
        machine, scale = _standardised(np.column_stack([rows.scores, rows.signals]))
        signals, k = machine.shape[1] - 1, directions.shape[1]
        sides = [] if references is None else [references.unsafe, np.concatenate([references.safe, references.neutral])]
        anchors = np.concatenate([np.zeros((0, k)), *(space(side) for side in sides)]) if k else np.zeros((0, 0))
        counts = [len(side) for side in sides] if k else []
        return cls(
            features=np.column_stack([np.ones(len(machine), np.float32), machine.astype(np.float32), directions]),
            mean=np.array([-EVEN, 1.0, *np.zeros(signals + k)]),
            spread=np.array([EVEN, 1.0, *np.ones(signals), *np.full(k, STATE_SPREAD)]),
            anchors=np.column_stack([np.zeros((len(anchors), 2 + signals)), anchors]),
            anchor_targets=np.repeat([1.0, 0.0][: len(counts)], counts),
            anchor_weights=np.repeat([REFERENCE_WEIGHT / 2 / count for count in counts], counts),
            unit=float(scale[0]),
        )

    def fit(self, places: NDArray[np.intp], bad: NDArray[np.bool_]) -> Floats:
        """The most probable weights given these decisions, shape (p,)."""
        if not len(places):
            return self.mean
        fade = len(places) / (len(places) + REFERENCE_WEIGHT)
        features = np.concatenate([self.features[places].astype(np.float64), self.anchors])
        targets = np.concatenate([np.where(bad, 1 - DOUBT, DOUBT), self.anchor_targets])
        counts = np.concatenate([np.ones(len(places)), fade * self.anchor_weights])
        return most_probable(features, targets, counts, mean=self.mean, spread=self.spread)


def most_probable(features: Floats, targets: Floats, counts: Floats, *, mean: Floats, spread: Floats) -> Floats:
    """Logistic regression with independent Gaussian priors, by Newton's method with step halving.

    Args:
        features: Shape (m, p).
        targets: Shape (m,), in [0, 1].
        counts: How many observations each row stands for, shape (m,).
        mean: Prior means, shape (p,).
        spread: Prior standard deviations, shape (p,).

    Returns:
        The weights of the highest posterior density, shape (p,).
    """
    precision = spread**-2.0

    def loss(weights: Floats) -> float:
        odds = features @ weights
        fit = counts @ (np.logaddexp(0, odds) - targets * odds)
        return float(fit + precision @ (weights - mean) ** 2 / 2)

    weights = mean.copy()
    for _ in range(100):
        chance = expit(features @ weights)
        downhill = features.T @ (counts * (targets - chance)) - precision * (weights - mean)
        curvature = (features * (counts * chance * (1 - chance))[:, None]).T @ features + np.diag(precision)
        step = np.linalg.solve(curvature, downhill)
        gain = float(downhill @ step)
        if gain < 1e-10:
            break
        size, before = 1.0, loss(weights)
        while loss(weights + size * step) > before - size * gain / 4 and size > 1e-6:
            size /= 2
        weights = weights + size * step
    return weights


def _standardised(values: Floats) -> tuple[Floats, Floats]:
    """Columns less their median, in standard deviations, and these; a missing value becomes the median."""
    finite = np.where(np.isfinite(values), values, np.nan)
    finite[:, np.isnan(finite).all(axis=0)] = 0
    spread = np.nanstd(finite, axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    return np.nan_to_num((finite - np.nanmedian(finite, axis=0)) / scale), scale
