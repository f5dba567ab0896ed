"""Shared statistics: AUROC, average precision, rank correlation, bootstrap intervals and McNemar's test."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score

from larf_curate.errors import InputError

Values = NDArray[Any]
Floats = NDArray[np.float64]

RESAMPLES = 10_000
"""Bootstrap samples of an interval of one mean."""
BLOCK_RESAMPLES = 2000
"""Bootstrap samples of intervals over all blocks: fewer, since they are computed as one matrix product in memory."""
COVERAGE = 0.95
PART = 100_000
"""Values of a correlation that are copied together."""


def bootstrap_interval(
    values: Sequence[float] | Sequence[bool], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean.

    If all values are 0 or all are 1, every bootstrap sample is the same and the interval would have no width; the exact
    binomial (Clopper-Pearson) interval is returned instead.

    Args:
        values: Numbers or booleans.
        level: Coverage, between 0 and 1.
        seed: Seed of the resampling.

    Returns:
        Lower and upper bound; both NaN if there are no values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return float("nan"), float("nan")
    if np.isin(numbers, (0, 1)).all():
        return _proportion_interval(int(numbers.sum()), len(numbers), level, seed)
    generator = np.random.default_rng(seed)
    means = [numbers[generator.integers(len(numbers), size=len(numbers))].mean() for _ in range(RESAMPLES)]
    return _percentile_bounds(np.asarray(means), level)


def difference_interval(changes: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of paired differences, each -1, 0 or 1.

    A percentile bootstrap; if all differences are equal, the exact binomial bound on a proportion of 0 is used.
    """
    if len(set(changes)) != 1:
        return bootstrap_interval(changes)
    exact = binomtest(0, len(changes)).proportion_ci()
    value, slack = float(changes[0]), float(exact.high)
    return max(value - slack, -1.0), min(value + slack, 1.0)


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> float:
    """Exact two-sided McNemar test on paired outcomes.

    Returns:
        The p-value in [0, 1]: the probability of a difference at least this large on the same prompts if both models
        had the same rate; 1 if no outcome differs.

    Raises:
        InputError: If the two have different numbers of answers.
    """
    if len(one) != len(other):
        raise InputError(
            f"wanted answers to the same prompts, got {len(one)} and {len(other)}: evaluate both on the same set"
        )
    # Only discordant pairs carry information: under the null hypothesis each is a fair coin toss.
    gained = sum(bool(b) and not a for a, b in zip(one, other, strict=True))
    lost = sum(bool(a) and not b for a, b in zip(one, other, strict=True))
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _proportion_interval(successes: int, count: int, level: float, seed: int) -> tuple[float, float]:
    """Bootstrap interval of a proportion; exact where all outcomes are equal."""
    if successes in (0, count):
        exact = binomtest(successes, count).proportion_ci(level)
        return float(exact.low), float(exact.high)
    # Resampling n zeros and ones is the same as drawing a binomial count, which needs no loop.
    counts = np.random.default_rng(seed).binomial(count, successes / count, size=RESAMPLES)
    return _percentile_bounds(counts / count, level)


def _percentile_bounds(means: "np.ndarray[tuple[int], np.dtype[np.float64]]", level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def auroc(high: Values, low: Values) -> float:
    """Probability that a random value of ``high`` exceeds one of ``low``, ties counting half; in [0, 1]."""
    return float(roc_auc_score(_labels(high, low), np.concatenate([high, low])))


def average_precision(high: Values, low: Values) -> float:
    """Average precision of ranking ``high`` above ``low``; in [0, 1], 1 is a perfect ranking."""
    return float(average_precision_score(_labels(high, low), np.concatenate([high, low])))


def rank_correlation(a: Values | Sequence[float], b: Values | Sequence[float]) -> float | None:
    """Spearman's rank correlation, with average ranks for ties, in [-1, 1].

    Of many values only sorted copies are in memory, and ranks of a part of them at a time.

    Returns:
        None where it is undefined: fewer than two values, or all values of one argument equal; NaN if one is NaN.
    """
    values = np.asarray(b), np.asarray(a)  # in this order the last digit is that of scipy
    if len(a) < 2 or 0 in (spans := [np.ptp(each) for each in values]):
        return None
    if np.isnan(spans).any():
        return float("nan")
    ordered, middle = [np.sort(each) for each in values], (len(a) + 1) / 2
    return _correlation(
        [_average_ranks(each[part], among) - middle for each, among in zip(values, ordered, strict=True)]
        for part in _parts(len(a))
    )


def correlation(a: Values, b: Values) -> float:
    """Pearson's correlation, in [-1, 1], with only a part of the values copied at a time."""
    means = a.mean(), b.mean()
    return _correlation([a[part] - means[0], b[part] - means[1]] for part in _parts(len(a)))


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + PART) for start in range(0, count, PART))


def _average_ranks(values: Values, ordered: Values) -> Floats:
    """Ranks of values among sorted ones, from 1; equal values have the mean of their ranks."""
    before, through = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (before + through + 1) / 2


def _correlation(parts: Iterable[Sequence[Values]]) -> float:
    """Pearson's correlation of two variables whose mean is 0, given in parts; as `numpy.corrcoef`."""
    products, count = np.zeros((2, 2)), 0
    for part in map(np.stack, parts):
        products += part @ part.T
        count += part.shape[1]
    covariance = products * (1 / (count - 1))
    deviations = np.sqrt(np.diag(covariance))
    return float(np.clip(covariance[0, 1] / deviations[0] / deviations[1], -1, 1))


def top_overlap(a: Values | Sequence[float], b: Values | Sequence[float]) -> float:
    """Share of the highest tenth of ``a``, at least one value, that is also in the highest tenth of ``b``; in [0, 1].

    Of equal values the first count as higher.
    """
    count = -(-len(a) // 10)
    first, second = (set(np.argsort(-np.asarray(values), kind="stable")[:count].tolist()) for values in (a, b))
    return len(first & second) / count


def agreement(layer_scores: Values) -> list[list[float | None]]:
    """Matrix of Spearman's correlations between all pairs of layers.

    Args:
        layer_scores: Scores of shape (n, layers).

    Returns:
        A symmetric layers x layers table; None where a correlation is undefined.
    """
    columns: Sequence[Values] = list(layer_scores.T)
    return [[rank_correlation(a, b) for b in columns] for a in columns]


def _labels(high: Values, low: Values) -> Values:
    return np.repeat([1, 0], [len(high), len(low)])


def bootstrap_weights(count: int) -> Floats:
    """Weights of ``count`` items in each bootstrap sample, summing to 1 per sample; shape (count, samples).

    The seed is fixed, so that all blocks and reports are resampled alike and their intervals can be compared.
    """
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=BLOCK_RESAMPLES)
    return np.asarray(draws.T / count)


def percentile_interval(samples: Floats) -> tuple[Floats, Floats]:
    """95 % percentile interval over the last axis: lower and upper bounds, without that axis."""
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail], axis=-1)
    return low, high


def mean_interval(effects: Floats) -> tuple[Floats, Floats]:
    """Bootstrap interval of each block's mean effect.

    Args:
        effects: Effect of each block on each prompt, shape (blocks, prompts).

    Returns:
        Lower and upper bounds, each of shape (blocks,).
    """
    return percentile_interval(effects @ bootstrap_weights(effects.shape[1]))


def auroc_change_interval(before: tuple[Values, Values], after: tuple[Values, Values]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the change of the AUROC when the same rows are scored anew.

    Rows are resampled within each kind, and each sample is scored both ways.

    Args:
        before: Scores of n rows that should be high and of m that should be low.
        after: The new scores of the same rows.

    Returns:
        Lower and upper bound, in [-1, 1].
    """
    wins = [np.sign(high[:, None] - low[None, :]) for high, low in (before, after)]
    change = (wins[1] - wins[0]) / 2
    rng = np.random.default_rng(0)
    high, low = (rng.multinomial(n, np.full(n, 1 / n), size=BLOCK_RESAMPLES) / n for n in change.shape)
    bounds = percentile_interval(np.einsum("sn,nm,sm->s", high, change, low, optimize=True))
    return float(bounds[0]), float(bounds[1])
