import numpy as np
import pytest
from numpy.testing import assert_allclose

from larf_curate.layers.choice import best_layers, cumulative_share, separation
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
