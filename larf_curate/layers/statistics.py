"""How sure a ranking of blocks is, and how far two rankings agree."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
COVERAGE = 0.95


def weights_of_resamples(count: int) -> Floats:
    """Shares of ``count`` items in bootstrap samples, always the same ones; shape (count, resamples)."""
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.asarray(draws.T / count)


def interval(samples: Floats) -> tuple[Floats, Floats]:
    """Percentile interval over the last axis."""
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=-1)
    return low, high


def mean_interval(effects: Floats) -> tuple[Floats, Floats]:
    """Bootstrap interval of the mean effect of each block.

    Args:
        effects: Effect of each block on each prompt, shape (blocks, prompts).

    Returns:
        Lower and upper bounds, each of shape (blocks,).
    """
    return interval(effects @ weights_of_resamples(effects.shape[1]))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation of two lists, ties sharing their mean rank; NaN if either is constant or shorter than two."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    if len(first) < 2 or any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Floats) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])
