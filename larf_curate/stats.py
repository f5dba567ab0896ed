"""Intervals for shares and means, and the paired test between two models."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from larf_curate.errors import InputError

RESAMPLES = 10_000


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
