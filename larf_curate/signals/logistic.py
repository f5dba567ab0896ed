"""Several signals at all layers, weighed by a regularised logistic model of references and neutral rows.

Source: stacked generalisation, Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1. The model learns from
scores of rows that were left out when the signals were made, so that a signal that merely remembers its references gets
no weight; how strongly it is regularised is chosen by cross-validation.

It tells held-out references from neutral rows and refusals better than any single signal, but knows only the kind of
harm that its references show, and has found less on labelled mixes than the default signal, which weighs nothing.
"""

from functools import partial

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from larf_curate.signals.centred import answer_similarity, larf_whitened, unsafe_similarity
from larf_curate.signals.combined import calibrated
from larf_curate.signals.direction import projection, refusal_direction
from larf_curate.signals.held_out import held_out
from larf_curate.signals.protocol import ReferenceStates, Signal
from larf_curate.states import States, Vectors

PARTS = (unsafe_similarity, answer_similarity, refusal_direction, projection, larf_whitened)
"""What is weighed, each less what length predicts and in standard deviations of neutral rows."""
STRENGTHS = (0.0001, 0.001, 0.01, 0.1)
"""Inverse strengths of the penalty to choose from; the features are standardised, so small means strong."""
FOLDS = 5


def logistic(refs: ReferenceStates) -> Signal:
    """Log-odds of being an unsafe reference and no neutral row; unbounded, higher is worse.

    The mean over the layers is the log-odds; the value at a layer is what that layer says of it.

    Args:
        refs: At least 2 rows a side.
    """
    fits = [partial(calibrated, fit) for fit in PARTS]
    left_out = [held_out(fit, refs, sides=("unsafe", "neutral")) for fit in fits]
    unsafe, neutral = (np.stack([getattr(part, side) for part in left_out], axis=2) for side in ("unsafe", "neutral"))
    weights, offset = _fit(unsafe, neutral)
    signals = [fit(refs) for fit in fits]

    def score(states: States) -> Vectors:
        features = np.stack([signal(states) for signal in signals], axis=2)
        return np.asarray(np.einsum("nlp,lp->nl", features, weights) * len(weights) + offset, np.float32)

    return score


def _fit(unsafe: Vectors, neutral: Vectors) -> tuple[Vectors, float]:
    """Weights of shape (layers, parts) and the offset, from features of shape (n, layers, parts)."""
    rows = np.concatenate([unsafe, neutral])
    labels = np.repeat([1, 0], [len(unsafe), len(neutral)])
    spread = rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1)
    splits = StratifiedKFold(min(FOLDS, len(unsafe), len(neutral)), shuffle=True, random_state=0)
    model = LogisticRegression(class_weight="balanced", max_iter=1000)
    search = GridSearchCV(model, {"C": STRENGTHS}, scoring="neg_log_loss", cv=splits)
    search.fit((rows / spread).reshape(len(rows), -1), labels)
    best = search.best_estimator_
    return np.asarray(best.coef_.reshape(spread.shape) / spread, np.float32), float(best.intercept_[0])
