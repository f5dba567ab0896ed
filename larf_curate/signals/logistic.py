"""Several signals at all layers, weighted by a regularised logistic regression of references against neutral rows.

Source: stacked generalisation, Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1. The regression is fitted to
held-out scores (of rows that the signals were not fitted to), so that a signal that merely memorises its references
gets no weight; the regularisation strength is chosen by cross-validation.

It separates held-out references from neutral rows and refusals better than any single signal, but covers only the kinds
of harm that its references show: on labelled mixes it has found fewer harmful rows than the default signal, which fits
no weights.
"""

from functools import partial

import numpy as np

from larf_curate.signals.calibration import calibrated
from larf_curate.signals.centred import answer_similarity, larf_whitened, unsafe_similarity
from larf_curate.signals.direction import projection, refusal_direction
from larf_curate.signals.held_out import held_out
from larf_curate.signals.protocol import ReferenceStates, Signal
from larf_curate.states import States, Vectors

COMPONENT_SIGNALS = (unsafe_similarity, answer_similarity, refusal_direction, projection, larf_whitened)
"""Features of the regression: each is calibrated first, so length is regressed out and the unit is a z-score."""
INVERSE_STRENGTHS = (0.0001, 0.001, 0.01, 0.1)
"""Candidates for ``C`` of `LogisticRegression`; on features of unit variance these small values regularise strongly."""
FOLDS = 5
"""Folds of the cross-validation that chooses the strength."""


def logistic(refs: ReferenceStates) -> Signal:
    """Log-odds of an unsafe reference against a neutral row; unbounded, higher is worse.

    The mean over the layers is the log-odds; the value at a layer is that layer's contribution, which depends on its
    states alone.

    Args:
        refs: At least 2 rows per side.
    """
    fits = [partial(calibrated, fit) for fit in COMPONENT_SIGNALS]
    scores = [held_out(fit, refs, sides=("unsafe", "neutral")) for fit in fits]
    unsafe, neutral = (np.stack([getattr(part, side) for part in scores], axis=2) for side in ("unsafe", "neutral"))
    weights, offset = _fit(unsafe, neutral)
    signals = [fit(refs) for fit in fits]

    def score(states: States) -> Vectors:
        features = np.stack([signal(states) for signal in signals], axis=2)
        # Times the number of layers, so that the mean over the layers is the sum that the regression computes.
        return np.asarray(np.einsum("nlp,lp->nl", features, weights) * len(weights) + offset, np.float32)

    return score


def _fit(unsafe: Vectors, neutral: Vectors) -> tuple[Vectors, float]:
    """Fit the regression.

    Args:
        unsafe: Held-out features of shape (n, layers, signals).
        neutral: The same of shape (m, layers, signals).

    Returns:
        Weights of shape (layers, signals), to be multiplied with the features as given, and the intercept.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second, which not all commands need
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    rows = np.concatenate([unsafe, neutral])
    labels = np.repeat([1, 0], [len(unsafe), len(neutral)])
    # Features are divided by their standard deviation for the fit, so that the penalty treats them equally; the weights
    # are divided by it at the end.
    spread = rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    splits = StratifiedKFold(min(FOLDS, len(unsafe), len(neutral)), shuffle=True, random_state=0)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    search = GridSearchCV(model, {"C": INVERSE_STRENGTHS}, scoring="neg_log_loss", cv=splits)
    search.fit((rows / spread).reshape(len(rows), -1), labels)
    best = search.best_estimator_
    return np.asarray(best.coef_.reshape(spread.shape) / spread, np.float32), float(best.intercept_[0])
