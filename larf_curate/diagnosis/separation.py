"""The figures of a diagnosis: how well scores separate, and what else they follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

Values = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a score tells unsafe references from others; 1 is perfect, an AUROC of 0.5 is chance.

    Args:
        auroc_neutral: Chance that an unsafe reference scores higher than a neutral row.
        precision_neutral: Average precision among the neutral rows.
        auroc_refusals: Chance that an unsafe reference scores higher than a refusal.
        precision_refusals: Average precision among the refusals.
    """

    auroc_neutral: float
    precision_neutral: float
    auroc_refusals: float
    precision_refusals: float

    @classmethod
    def of(cls, unsafe: Values, safe: Values, neutral: Values) -> "Separation":
        """Compare scores of shape (n,) of the three sides."""
        return cls(
            auroc_neutral=auroc(unsafe, neutral),
            precision_neutral=average_precision(unsafe, neutral),
            auroc_refusals=auroc(unsafe, safe),
            precision_refusals=average_precision(unsafe, safe),
        )


def auroc(high: Values, low: Values) -> float:
    """Chance that one of the first scores higher than one of the second, ties counting half."""
    return float(roc_auc_score(_labels(high, low), np.concatenate([high, low])))


def average_precision(high: Values, low: Values) -> float:
    """Average precision of the first among both."""
    return float(average_precision_score(_labels(high, low), np.concatenate([high, low])))


def rank_correlation(a: Values, b: Values) -> float | None:
    """Spearman's correlation; None where one of them does not vary."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def agreement(layer_scores: Values) -> list[list[float | None]]:
    """Spearman's correlation of every two layers, from scores of shape (n, layers)."""
    columns: Sequence[Values] = list(layer_scores.T)
    return [[rank_correlation(a, b) for b in columns] for a in columns]


def _labels(high: Values, low: Values) -> Values:
    return np.repeat([1, 0], [len(high), len(low)])
