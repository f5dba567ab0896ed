"""Statistics that several rooms share: AUROC, rank correlation, bootstrap intervals, and McNemar's test."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from larf_curate.errors import InputError

Values = NDArray[Any]
Floats = NDArray[np.float64]

RESAMPLES = 10_000
BLOCK_RESAMPLES = 2000
"""Bootstrap samples of the intervals over blocks, which are computed as one matrix product."""
COVERAGE = 0.95


def bootstrap_interval(
    values: Sequence[float] | Sequence[bool], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    Where all values of a share are equal the bootstrap has no width; the exact binomial interval stands in.

    Args:
        values: Numbers, or True and False.
        level: Coverage.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound; both NaN without values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return float("nan"), float("nan")
    if np.isin(numbers, (0, 1)).all():
        return _share_interval(int(numbers.sum()), len(numbers), level, seed)
    generator = np.random.default_rng(seed)
    means = [numbers[generator.integers(len(numbers), size=len(numbers))].mean() for _ in range(RESAMPLES)]
    return _bounds(np.asarray(means), level)


def difference_interval(changes: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of paired differences -1, 0 and 1; exact where all are equal."""
    if len(set(changes)) != 1:
        return bootstrap_interval(changes)
    exact = binomtest(0, len(changes)).proportion_ci()
    value, slack = float(changes[0]), float(exact.high)
    return max(value - slack, -1.0), min(value + slack, 1.0)


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Exact two-sided McNemar test: the chance that two models with equal rates differ so on the same prompts.

    Raises:
        InputError: If the two do not have as many answers.
    """
    if len(one) != len(other):
        raise InputError(
            f"wanted answers to the same prompts, got {len(one)} and {len(other)}: evaluate both on one set"
        )
    gained = sum(bool(b) and not a for a, b in zip(one, other, strict=True))
    lost = sum(bool(a) and not b for a, b in zip(one, other, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _share_interval(successes: int, count: int, level: float, seed: int) -> tuple[float, float]:
    """Resampling n zeros and ones draws a binomial count."""
    if successes in (0, count):
        exact = binomtest(successes, count).proportion_ci(level)
        return float(exact.low), float(exact.high)
    counts = np.random.default_rng(seed).binomial(count, successes / count, size=RESAMPLES)
    return _bounds(counts / count, level)


def _bounds(means: "np.ndarray[tuple[int], np.dtype[np.float64]]", level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def auroc(high: Values, low: Values) -> float:
    """Chance that one of the first scores higher than one of the second, ties counting half."""
    return float(roc_auc_score(_labels(high, low), np.concatenate([high, low])))


def average_precision(high: Values, low: Values) -> float:
    """Average precision of the first among both."""
    return float(average_precision_score(_labels(high, low), np.concatenate([high, low])))


def rank_correlation(a: Values | Sequence[float], b: Values | Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties sharing their mean rank, in [-1, 1].

    Returns:
        None where it is undefined: fewer than two values, or one of the two does not vary.
    """
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(spearmanr(a, b).statistic)


def agreement(layer_scores: Values) -> list[list[float | None]]:
    """Spearman's correlation of every two layers, from scores of shape (n, layers)."""
    columns: Sequence[Values] = list(layer_scores.T)
    return [[rank_correlation(a, b) for b in columns] for a in columns]


def _labels(high: Values, low: Values) -> Values:
    return np.repeat([1, 0], [len(high), len(low)])


def weights_of_resamples(count: int) -> Floats:
    """Shares of ``count`` items in bootstrap samples, always the same ones; shape (count, resamples)."""
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=BLOCK_RESAMPLES)
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
