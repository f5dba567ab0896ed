"""Confidence sequence for the number of harmful rows left, from samples without replacement of the rows nobody chose.

Source: Waudby-Smith and Ramdas (2020), Confidence sequences for sampling without replacement, theorem 1,
https://arxiv.org/abs/2006.04347. With a beta-binomial prior on the number K of harmful rows in a finite population, the
ratio of prior to posterior at the true K is a martingale with mean 1 while the population is sampled in random order.
A later sample of what is left goes on from there: K is smaller by the harmful rows found in between, and the product of
the ratios is a martingale still. By Ville's inequality it ever exceeds 1 / alpha with probability alpha at most. The
numbers with a lower product therefore cover the true one at all times together, also at one that was chosen by whoever
saw the data.

Priors determine the width only, never the coverage. That of a later sample is learned from the earlier ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, gammaln

PRIOR = (0.5, 5.0)
"""Parameters of the first beta-binomial prior: narrowest where few rows are harmful."""
MEMORY = 0.5
"""Weight of a row of an earlier sample in the prior of the next: harmful rows become fewer as people find them."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows of a finite population in random order, of which the first were read, and what is known of the others.

    Args:
        rows: Number of rows in the population.
        read: Number of rows read from the start of the random order.
        harmful: Number of harmful ones among them.
        found: Number of harmful rows found in the population since, these included.
        outside: Number of unread rows that are not in the population.
    """

    rows: int
    read: int
    harmful: int
    found: int
    outside: int


def left_range(samples: Sequence[Sample], unread: int, *, alpha: float) -> tuple[int, int]:
    """Bounds on the number of harmful rows among all unread ones.

    Args:
        samples: Samples in their order; of all but the last one, all rows that were drawn must have been read.
        unread: Number of unread rows, in the population of the samples or not.
        alpha: Probability, in (0, 1), that the bounds fail at any time.

    Returns:
        Lowest and highest number, both from 0 to ``unread``.
    """
    left = np.arange(unread + 1)
    fit, (a, b) = np.zeros(unread + 1), PRIOR
    for sample in samples:
        fit += _fit(sample, left) - _evidence(sample, a, b)
        a, b = (
            PRIOR[0] + MEMORY * (a - PRIOR[0] + sample.harmful),
            PRIOR[1] + MEMORY * (b - PRIOR[1] + sample.read - sample.harmful),
        )
    plausible = left[fit > np.log(alpha)]
    # Empty only if the samples contradict each other, which has probability alpha: then the likeliest number.
    return (int(plausible[0]), int(plausible[-1])) if len(plausible) else (int(fit.argmax()),) * 2


def most_likely(samples: Sequence[Sample], unread: int, *, share_outside: float) -> int:
    """The number of harmful rows among all unread ones with the highest likelihood.

    Args:
        samples: See `left_range`.
        unread: Number of unread rows.
        share_outside: Assumed share of harmful rows among those that are not in the population of a sample.
    """
    left = np.arange(unread + 1)
    fit = sum(_log_likelihood(s, left - round(share_outside * s.outside) + s.found) for s in samples)
    return int(np.argmax(fit))


def _fit(sample: Sample, left: NDArray[np.intp]) -> Numbers:
    """Log-likelihood of each number of harmful rows left, with the likeliest number of them outside the population."""
    best = int(np.argmax(_log_likelihood(sample, np.arange(sample.rows + 1))))
    # Between none and all of the unread rows outside are harmful; the likelihood has a single peak.
    harmful = np.clip(np.full_like(left, best), left - sample.outside + sample.found, left + sample.found)
    return _log_likelihood(sample, harmful)


def _log_likelihood(sample: Sample, harmful: NDArray[np.intp]) -> Numbers:
    """Hypergeometric log-likelihood of numbers of harmful rows in the population; minus infinity if impossible."""
    possible = (harmful >= sample.found) & (sample.rows - harmful >= sample.read - sample.harmful)
    counts = np.where(possible, harmful, sample.found)
    value = (
        _log_choose(counts, sample.harmful)
        + _log_choose(sample.rows - counts, sample.read - sample.harmful)
        - _log_choose(sample.rows, sample.read)
    )
    return np.where(possible, value, -np.inf)


def _evidence(sample: Sample, a: float, b: float) -> float:
    """Log-probability of a sample with a beta-binomial prior."""
    kept = sample.read - sample.harmful
    return float(_log_choose(sample.read, sample.harmful) + betaln(sample.harmful + a, kept + b) - betaln(a, b))


def _log_choose(n: "NDArray[np.intp] | int", k: int) -> Numbers:
    """Logarithm of the binomial coefficient."""
    total = np.maximum(np.asarray(n, np.float64), k)
    return np.asarray(gammaln(total + 1) - gammaln(k + 1) - gammaln(total - k + 1))
