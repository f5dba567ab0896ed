"""Logistic regression whose prior is the ranking by machine score; see `larf_curate.review.learning`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from larf_curate.review.learning.inputs import Floats, References, StoredRows
from larf_curate.review.learning.space import Space

EVEN_ODDS_AT = 2.0
"""Score, in standard deviations above the median, at which removal has probability 1/2 a priori."""
STATE_PRIOR_STD = 4.0
"""Prior standard deviation of each weight of the state, and thus of the log-odds that a unit state adds."""
LABEL_SMOOTHING = 0.05
"""Assumed share of mistaken decisions: a decision counts as 95 % certain."""
REFERENCE_WEIGHT = 10.0
"""Number of decisions as which all references together count."""
EARLIER_WEIGHT = 10.0
"""Number of decisions as which all decisions on other datasets together count at most.

What is harmful or ordinary there need not be so here, and decisions on the rows themselves should soon prevail.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Regression:
    """Logistic regression with independent Gaussian priors on its weights.

    Args:
        features: Features of all n rows, shape (n, p), float32: a constant 1, the standardised score, the standardised
            signals, the projected state.
        prior_mean: Prior mean of each weight, shape (p,).
        prior_std: Prior standard deviation of each weight, shape (p,).
        reference_features: Features of r references, shape (r, p).
        reference_targets: 1 for unsafe references, 0 for the others, shape (r,).
        reference_weights: Number of decisions as which each reference counts, shape (r,); the sum is 10.
        score_std: Standard deviation of the scores, which converts standardised scores into units of ``larf_score``.
        own: Number of rows that are to be ranked, the first ones; the others are of other datasets.
    """

    features: NDArray[np.float32]
    prior_mean: Floats
    prior_std: Floats
    reference_features: Floats
    reference_targets: Floats
    reference_weights: Floats
    score_std: float
    own: int

    @classmethod
    def of(
        cls,
        rows: StoredRows,
        directions: NDArray[np.float32],
        space: Space,
        references: References | None,
        *,
        own: int,
    ) -> "Regression":
        """Assemble the features and priors for all rows.

        Args:
            rows: The n rows.
            directions: Their projected states, shape (n, k), float32; zero for rows without a state.
            space: The space of ``directions``, into which the references are projected.
            references: References of the profile, if available.
            own: Number of rows that are to be ranked, the first ones; the others are in their scale.
        """
        machine, stds = _standardised(np.column_stack([rows.scores, rows.signals]), own)
        signals, k = machine.shape[1] - 1, directions.shape[1]
        # Two sides of equal weight, however many references each has.
        sides = [] if references is None else [references.unsafe, np.concatenate([references.safe, references.neutral])]
        projected = np.concatenate([np.zeros((0, k)), *(space(side) for side in sides)]) if k else np.zeros((0, 0))
        counts = [len(side) for side in sides] if k else []
        return cls(
            features=np.column_stack([np.ones(len(machine), np.float32), machine.astype(np.float32), directions]),
            prior_mean=np.array([-EVEN_ODDS_AT, 1.0, *np.zeros(signals + k)]),
            prior_std=np.array([EVEN_ODDS_AT, 1.0, *np.ones(signals), *np.full(k, STATE_PRIOR_STD)]),
            # Constant and scores are zero, so that references affect the weights of the state only.
            reference_features=np.column_stack([np.zeros((len(projected), 2 + signals)), projected]),
            reference_targets=np.repeat([1.0, 0.0][: len(counts)], counts),
            reference_weights=np.repeat([REFERENCE_WEIGHT / 2 / count for count in counts], counts),
            score_std=float(stds[0]),
            own=own,
        )

    def fit(self, decided: NDArray[np.intp], positive: NDArray[np.bool_]) -> Floats:
        """MAP estimate of the weights given some decisions; without any, the prior means.

        Args:
            decided: Indices of the decided rows, shape (m,).
            positive: Whether each was decided to be removed or edited, shape (m,).

        Returns:
            Shape (p,), float64.
        """
        if not len(decided):
            return self.prior_mean
        others = decided >= self.own
        counts = np.where(others, min(1.0, EARLIER_WEIGHT / max(1, others.sum())), 1.0)
        # References fade in with the decisions: the ranking leaves that of the machine score gradually.
        reference_share = counts.sum() / (counts.sum() + REFERENCE_WEIGHT)
        features = np.concatenate([self.features[decided].astype(np.float64), self.reference_features])
        labels = np.where(positive, 1 - LABEL_SMOOTHING, LABEL_SMOOTHING)
        targets = np.concatenate([labels, self.reference_targets])
        counts = np.concatenate([counts, reference_share * self.reference_weights])
        return map_estimate(features, targets, counts, prior_mean=self.prior_mean, prior_std=self.prior_std)


def map_estimate(features: Floats, targets: Floats, counts: Floats, *, prior_mean: Floats, prior_std: Floats) -> Floats:
    """MAP estimate of logistic regression with independent Gaussian priors, by Newton's method with backtracking.

    Args:
        features: Shape (m, p).
        targets: Shape (m,), in [0, 1].
        counts: Number of observations that each row represents, shape (m,).
        prior_mean: Prior means, shape (p,).
        prior_std: Prior standard deviations, shape (p,).

    Returns:
        The weights with the highest posterior density, shape (p,).
    """
    precision = prior_std**-2.0

    def loss(weights: Floats) -> float:
        log_odds = features @ weights
        fit = counts @ (np.logaddexp(0, log_odds) - targets * log_odds)
        return float(fit + precision @ (weights - prior_mean) ** 2 / 2)

    weights = prior_mean.copy()
    for _ in range(100):
        probabilities = expit(features @ weights)
        descent = features.T @ (counts * (targets - probabilities)) - precision * (weights - prior_mean)
        curvature = counts * probabilities * (1 - probabilities)
        hessian = (features * curvature[:, None]).T @ features + np.diag(precision)
        step = np.linalg.solve(hessian, descent)
        decrement = float(descent @ step)  # squared Newton decrement: twice the expected decrease of the loss
        if decrement < 1e-10:
            break
        size, before = 1.0, loss(weights)
        # Full Newton steps can overshoot where the sigmoid is flat; halve them until the loss decreases (Armijo).
        while loss(weights + size * step) > before - size * decrement / 4 and size > 1e-6:
            size /= 2
        weights = weights + size * step
    return weights


def _standardised(values: Floats, own: int) -> tuple[Floats, Floats]:
    """Columns as ``(x - median) / standard deviation``, and their standard deviations; missing values become 0.

    Median and standard deviation are those of the first ``own`` rows.
    """
    finite = np.where(np.isfinite(values), values, np.nan)
    finite[:, np.isnan(finite[:own]).all(axis=0)] = 0
    deviations = np.nanstd(finite[:own], axis=0)
    stds = np.where(deviations > 0, deviations, 1.0)  # a constant column stays 0
    return np.nan_to_num((finite - np.nanmedian(finite[:own], axis=0)) / stds), stds
