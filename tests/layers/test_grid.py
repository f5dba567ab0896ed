import math

import numpy as np
import pytest

from larf_curate.errors import InputError
from larf_curate.layers.grid import Grid, GridStore, check_alphas, evaluate_grid, pairs, rank_blocks
from larf_curate.stats import mean_interval, rank_correlation


def test_blocks_rank_by_the_widest_pair_of_scales_and_ties_by_the_narrower_ones():
    alphas = (0.7, 0.8, 1.2, 1.3)
    counts = [[0, 1, 2, 4], [0, 0, 2, 4], [0, 0, 3, 3], [3, 2, 1, 0]]
    values = np.array([[[float(i < n) for i in range(4)] for n in row] for row in counts])
    assert rank_blocks(*Grid(alphas, values).gains) == [1, 0, 2, 3]
    assert pairs(alphas) == [(0, 3), (1, 2)]
    np.testing.assert_array_equal(Grid(alphas, values).effects.sum(1), [4, 4, 3, -3])


@pytest.mark.parametrize(
    "alphas", [[], [0.7], [0.7, 0.8, 1.3], [0.0, 1.3], [0.7, 1.0, 1.3], [-1, 2], [0.7, math.inf], [0.7, math.nan]]
)
def test_scales_without_a_partner_are_refused(alphas):
    with pytest.raises(InputError, match="scales"):
        check_alphas(alphas)


def test_scales_are_sorted_and_repeated_ones_dropped():
    assert check_alphas([1.3, 0.7, 1.3]) == (0.7, 1.3)


def test_a_grid_goes_on_after_an_interrupt_in_the_middle_of_a_line(tmp_path):
    path, calls = tmp_path / "deep" / "cells.jsonl", []

    def cell(block, alpha):
        calls.append((block, alpha))
        return [block + alpha, 1.0]

    evaluate_grid(cell, 1, (0.7, 1.3), GridStore(path, "key"), title="test")
    with path.open("ab") as stream:
        stream.write(b'\n{"key": "key", "block": 1, "alp')
    grid = evaluate_grid(cell, 2, (0.7, 1.3), GridStore(path, "key"), title="test")
    assert calls == [(0, 0.7), (0, 1.3), (1, 0.7), (1, 1.3)]
    np.testing.assert_allclose(grid.values[..., 0], [[0.7, 1.3], [1.7, 2.3]])
    assert len(GridStore(path, "key").cells) == 4, "the line behind the torn one must be readable"
    assert not GridStore(path, "other").cells


def test_intervals_cover_the_mean_and_shrink_with_more_prompts():
    rng = np.random.default_rng(1)
    few, many = rng.normal(1, 1, (1, 10)), rng.normal(1, 1, (1, 1000))
    for effects in (few, many):
        low, high = mean_interval(effects)
        assert low[0] < effects.mean() < high[0]
        assert (high - low)[0] == pytest.approx(2 * 1.96 * effects.std() / effects.shape[1] ** 0.5, rel=0.15)


def test_effects_that_never_vary_have_an_interval_of_no_width():
    low, high = mean_interval(np.zeros((2, 5)))
    assert low.tolist() == high.tolist() == [0, 0]


def test_spearman_equals_scipys_with_ties():
    stats = pytest.importorskip("scipy.stats")
    first, second = [1.0, 2, 2, 3, 5, 5], [2.0, 1, 4, 4, 4, 9]
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) is None
    assert rank_correlation([1.0], [1.0]) is None
