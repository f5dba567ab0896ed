import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from larf_curate.errors import ReferenceSetError
from larf_curate.layers.choice import best_layers, check_enough_rows, cumulative_share, middle_half, separation
from larf_curate.signals import SIGNALS, ReferenceStates
from tests.fixtures.reference_states import drawn_references
from tests.signals.test_held_out import naive_held_out


@pytest.fixture(scope="module")
def refs():
    return drawn_references()


def test_separation_is_the_held_out_distance_from_neutral_rows_and_refusals_in_pooled_deviations(refs):
    scores = naive_held_out("unsafe_similarity", refs)
    unsafe, want = scores["unsafe"], 0
    for others in (scores["neutral"], scores["safe"]):
        pooled = np.sqrt((unsafe.std(0) ** 2 + others.std(0) ** 2) / 2)
        want = want + (unsafe.mean(0) - others.mean(0)) / pooled / 2
    assert_allclose(separation(SIGNALS["unsafe_similarity"].fit, refs), want, rtol=1e-3)


def test_the_best_layers_are_the_three_of_the_middle_that_separate_best():
    blocks, order = 12, [4, 7, 5]
    rng = np.random.default_rng(0)

    def states(count, strength):
        values = rng.normal(size=(count, blocks, 8)).astype(np.float32)
        values[:, :, 0] += strength
        return {"last": values}

    strength = np.full(blocks, 0.5)
    strength[[0, 1, 11]] = 50  # outside the middle half
    for place, block in enumerate(order):
        strength[block] = 9 - place
    refs = ReferenceStates(unsafe=states(30, strength), safe=states(30, 0), neutral=states(30, 0))
    found = best_layers([lambda _refs: lambda rows: rows["last"][:, :, 0]], refs, blocks)
    assert found == tuple(sorted(order))


def test_layers_behind_what_refusals_depend_on_are_chosen_before_ones_that_separate_a_little_better():
    blocks = 12
    rng = np.random.default_rng(0)

    def states(count, strength):
        values = rng.normal(size=(count, blocks, 8)).astype(np.float32)
        values[:, :, 0] += strength
        return {"last": values}

    strength = np.full(blocks, 0.5)
    strength[3:9] = [12, 11, 10, 9, 8, 4]
    refs = ReferenceStates(unsafe=states(30, strength), safe=states(30, 0), neutral=states(30, 0))
    sensitivity = np.full(blocks, -1.0)
    sensitivity[5] = 2

    def fit(_refs):
        return lambda rows: rows["last"][:, :, 0]

    assert best_layers([fit], refs, blocks) == (3, 4, 5)
    assert best_layers([fit], refs, blocks, sensitivity=sensitivity) == (5, 6, 7)
    sensitivity[[5, 11]] = [0, 2]  # behind the middle half: no layer of it carries anything
    assert best_layers([fit], refs, blocks, sensitivity=sensitivity) == (3, 4, 5)


def test_what_a_state_carries_is_the_share_of_sensitivity_up_to_its_block():
    sensitivity = [-1.0, 1.0, 0.0, 3.0, -2.0, 4.0]
    want = [sum(max(s, 0) for s in sensitivity[: block + 1]) / 8 for block in range(6)]
    assert_allclose(cumulative_share(sensitivity), want)
    assert_allclose(cumulative_share([-1.0, 0.0]), [0, 0])


def test_a_layer_where_one_of_two_signals_says_nothing_is_not_chosen():
    blocks = 12
    rng = np.random.default_rng(0)

    def states(count, strength):
        values = rng.normal(size=(count, blocks, 2)).astype(np.float32)
        return {"last": values + strength}

    strength = np.full((blocks, 2), 0.5)
    strength[:, 0] = 6  # separates everywhere
    strength[3:6, 0] = 7
    strength[6:9, 1] = 6
    refs = ReferenceStates(unsafe=states(30, strength), safe=states(30, 0), neutral=states(30, 0))
    fits = [lambda _refs, i=i: lambda rows: rows["last"][:, :, i] for i in range(2)]
    assert best_layers(fits[:1], refs, blocks) == (3, 4, 5)
    assert best_layers(fits, refs, blocks) == (6, 7, 8)


def test_layers_come_from_the_middle_half_of_which_there_is_always_one():
    assert {blocks: middle_half(blocks).tolist() for blocks in (1, 2, 4, 5, 8, 11, 12, 30)} == {
        1: [0],
        2: [0, 1],
        4: [1, 2],
        5: [1, 2, 3],
        8: [2, 3, 4, 5],
        11: [*range(2, 9)],
        12: [*range(3, 9)],
        30: [*range(7, 23)],
    }


def test_five_references_a_side_are_enough_and_four_are_not():
    check_enough_rows(range(5), range(9))
    with pytest.raises(ReferenceSetError, match="at least 5 .* got 4"):
        check_enough_rows(range(9), range(4))


def test_scores_that_never_vary_do_not_separate():
    flat = {"last": np.zeros((6, 2, 1), np.float32)}
    refs = ReferenceStates(unsafe=flat, safe=flat, neutral=flat)
    assert_array_equal(separation(lambda _refs: lambda rows: rows["last"][:, :, 0], refs), [0, 0])


def test_a_signal_that_separates_less_in_all_counts_as_much_and_a_negative_separation_as_none():
    rng = np.random.default_rng(0)
    strong, weak = np.array([9.0, 8, 0, 8, 0, 0, 0, 9]), np.array([0.0, 0, -9, 1.5, 2, 0.4, -9, 9])

    def states(count, shift):
        return {"last": (rng.normal(size=(count, 8, 2)) + shift).astype(np.float32)}

    unsafe = states(200, np.stack([strong, weak], axis=1))
    refs = ReferenceStates(unsafe=unsafe, safe=states(200, 0), neutral=states(200, 0))
    fits = [lambda _refs, i=i: lambda rows: rows["last"][:, :, i] for i in range(2)]
    shares = [
        np.maximum(values, 0) / values.max() for values in (separation(fit, refs)[2:6].astype(float) for fit in fits)
    ]
    want = sorted(2 + np.argsort(-np.mean(shares, axis=0))[:3])
    assert best_layers(fits, refs, 8) == tuple(want) == (3, 4, 5)
