import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import binom, rankdata, spearmanr

from larf_curate.errors import InputError
from larf_curate.stats import (
    agreement,
    auroc,
    average_precision,
    bootstrap_interval,
    correlation,
    difference_interval,
    mcnemar,
    mean_interval,
    rank_correlation,
)


@pytest.mark.parametrize(("change", "low", "high"), [(0.0, -0.1684, 0.1684), (1.0, 0.8316, 1.0), (-1.0, -1.0, -0.8316)])
def test_differences_that_are_all_equal_have_an_exact_interval(change, low, high):
    assert difference_interval([change] * 20) == pytest.approx((low, high), abs=1e-4)
    mixed = [change, *[0.5] * 9]
    assert difference_interval(mixed) == bootstrap_interval(mixed)


def test_the_bootstrap_interval_of_a_share_equals_resampling():
    values = [True] * 30 + [False] * 70
    rng = np.random.default_rng(5)
    means = [np.mean(rng.choice(values, len(values))) for _ in range(4000)]
    assert bootstrap_interval(values) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.011)
    numbers = list(rng.normal(size=60))
    means = [np.mean(rng.choice(numbers, len(numbers))) for _ in range(4000)]
    assert bootstrap_interval(numbers) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)


def test_the_bootstrap_interval_of_a_share_has_the_quantiles_of_the_binomial_distribution():
    values = [True] * 300 + [False] * 700
    for level in (0.95, 0.5):
        want = binom.ppf([(1 - level) / 2, (1 + level) / 2], 1000, 0.3) / 1000
        assert bootstrap_interval(values, level=level) == pytest.approx(want, abs=0.0011)


def test_a_share_of_all_or_none_still_has_an_interval():
    assert bootstrap_interval([True] * 20) == pytest.approx((0.025 ** (1 / 20), 1.0))
    assert bootstrap_interval([False] * 20) == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))
    assert all(math.isnan(bound) for bound in bootstrap_interval([]))


def test_mcnemar_is_the_two_sided_binomial_test_of_the_outcomes_that_differ():
    one, other = [True] * 9 + [False] * 6, [True] * 2 + [False] * 7 + [True] * 2 + [False] * 4
    assert mcnemar(one, other) == pytest.approx(2 * binom.cdf(2, 9, 0.5))
    assert mcnemar(other, one) == pytest.approx(2 * binom.cdf(2, 9, 0.5))


def test_mcnemar_of_equal_models_is_one():
    assert mcnemar([True, False], [True, False]) == 1.0
    assert mcnemar([True, False], [False, True]) == 1.0
    with pytest.raises(InputError, match="got 1 and 2"):
        mcnemar([True], [True, False])


def test_intervals_cover_the_mean_and_shrink_with_more_prompts():
    rng = np.random.default_rng(1)
    few, many = rng.normal(1, 1, (1, 10)), rng.normal(1, 1, (1, 1000))
    for effects in (few, many):
        low, high = mean_interval(effects)
        assert low[0] < effects.mean() < high[0]
        assert (high - low)[0] == pytest.approx(2 * 1.96 * effects.std() / effects.shape[1] ** 0.5, rel=0.06)


def test_effects_that_never_vary_have_an_interval_of_no_width():
    low, high = mean_interval(np.zeros((2, 5)))
    assert low.tolist() == high.tolist() == [0, 0]


def test_spearman_equals_scipys_with_ties():
    first, second = [1.0, 2, 2, 3, 5, 5], [2.0, 1, 4, 4, 4, 9]
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0], [1.0]) is None
    assert rank_correlation([1.0, 2.0], [5.0, 4.0]) == pytest.approx(-1)


def test_correlations_in_parts_are_those_of_scipy_and_numpy(monkeypatch):
    rng = np.random.default_rng(0)
    a = rng.normal(size=1003).round(1)
    b = a + rng.integers(0, 5, 1003)
    whole = rank_correlation(a, b), correlation(a, b)
    assert whole == (spearmanr(a, b).statistic, np.corrcoef(a, b)[0, 1])
    monkeypatch.setattr("larf_curate.stats.PART", 10)
    assert_allclose((rank_correlation(a, b), correlation(a, b)), whole, rtol=1e-12)
    assert np.isnan(rank_correlation([1.0, np.nan, 3.0], [1.0, 2.0, 3.0]))


def test_the_figures_equal_their_definitions():
    rng = np.random.default_rng(0)
    high, low = rng.integers(0, 9, 30) + 1.0, rng.integers(0, 9, 50) * 1.0
    wins = [(a > b) + 0.5 * (a == b) for a in high for b in low]
    assert_allclose(auroc(high, low), np.mean(wins))
    a, b = rng.normal(size=40), rng.normal(size=40)
    assert_allclose(rank_correlation(a, b), np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    assert rank_correlation(a, np.ones(40)) is None
    assert_allclose(agreement(np.stack([a, b, -a], axis=1))[0], [1, rank_correlation(a, b), -1])
    high, low = rng.normal(size=20) + 1, rng.normal(size=30)
    order = np.argsort(-np.concatenate([high, low]))
    hits = order < 20
    precision = np.cumsum(hits) / np.arange(1, 51)
    assert_allclose(average_precision(high, low), precision[hits].mean())
