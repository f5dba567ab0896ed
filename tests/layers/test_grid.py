import math

import numpy as np
import pytest

from larf_curate.errors import InputError
from larf_curate.layers.grid import Grid, GridStore, check_alphas, evaluate_grid, pairs, rank_blocks


def test_blocks_rank_by_the_widest_pair_of_scales_and_ties_by_the_narrower_ones():
    alphas = (0.7, 0.8, 1.2, 1.3)
    counts = [[0, 1, 2, 4], [0, 0, 2, 4], [0, 0, 3, 3], [3, 2, 1, 0]]
    values = np.array([[[float(i < n) for i in range(4)] for n in row] for row in counts])
    assert rank_blocks(*Grid(alphas, values).gains) == [1, 0, 2, 3]
    assert pairs(alphas) == [(0, 3), (1, 2)]
    np.testing.assert_array_equal(Grid(alphas, values).effects.sum(1), [4, 4, 3, -3])


def test_gains_that_differ_by_rounding_alone_are_ties_and_ties_of_all_go_by_block_number():
    gains = np.array([0.3, 0.1 + 0.2, 0.5])
    assert rank_blocks(gains, np.array([1.0, 0.0, 0.0])) == [2, 0, 1]
    assert rank_blocks(gains) == [2, 0, 1]


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
