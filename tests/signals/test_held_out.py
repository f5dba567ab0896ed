import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from larf_curate.errors import ReferenceSetError
from larf_curate.signals import SIGNALS, ReferenceStates
from larf_curate.signals.held_out import fold_of, held_out
from tests.fixtures.reference_states import LAYERS, SIDES, drawn, drawn_references


@pytest.fixture(scope="module")
def refs():
    return drawn_references()


def pick(states, places):
    return {p: v[places] for p, v in states.items()}


def folds(count):
    """The partition that all that is held out shares: five folds of rows shuffled with seed 0."""
    order = np.arange(count)
    np.random.RandomState(0).shuffle(order)
    return [np.sort(part) for part in np.array_split(order, 5)]


def naive_held_out(name, refs):
    """Scores by side of shape (n, layers), every fold scored by a signal made without it."""
    parts = {side: folds(len(getattr(refs, side)["last"])) for side in SIDES}
    scores = {side: np.zeros((len(getattr(refs, side)["last"]), LAYERS)) for side in SIDES}
    for fold in range(5):
        kept = {
            side: pick(states, np.setdiff1d(np.arange(len(states["last"])), parts[side][fold]))
            for side, states in ((side, getattr(refs, side)) for side in SIDES)
        }
        signal = SIGNALS[name].fit(ReferenceStates(**kept, borderline=refs.borderline))
        for side in SIDES:
            scores[side][parts[side][fold]] = signal(pick(getattr(refs, side), parts[side][fold]))
    return scores


@pytest.mark.parametrize("name", ["unsafe_similarity", "combined"])
def test_held_out_rows_are_scored_by_signals_made_without_them(name, refs):
    want = naive_held_out(name, refs)
    got = held_out(SIGNALS[name].fit, refs)
    for side in SIDES:
        assert_allclose(getattr(got, side), want[side], atol=1e-5)


def test_sides_that_are_not_left_out_stay_whole(refs):
    seen = []

    def fit(made):
        seen.append([len(getattr(made, side)["last"]) for side in SIDES])
        return lambda states: states["last"][:, :, 0]

    got = held_out(fit, refs, sides=("neutral",))
    assert seen == [[22, 20, 32]] * 5
    assert_array_equal(got.neutral, refs.neutral["last"][:, :, 0])
    assert got.unsafe.shape == got.safe.shape == (0, LAYERS)


@pytest.mark.parametrize("count", [6, 22])
def test_rows_are_left_out_in_five_folds_of_a_fixed_shuffle(count):
    for number, members in enumerate(folds(count)):
        assert_array_equal(np.flatnonzero(fold_of(count) == number), members)


def numbered(count):
    return {"last": np.arange(count, dtype=np.float32)[:, None, None]}


def test_the_references_of_a_pair_are_left_out_together_and_top_k_stays_within_the_others():
    left_out = []

    def fit(made):
        assert_array_equal(made.unsafe["last"], made.safe["last"])
        kept = made.unsafe["last"].ravel().tolist()
        assert made.top_k == len(kept)
        left_out.extend({*range(6)} - {*kept})
        return lambda states: states["last"][:, :, 0]

    held_out(fit, ReferenceStates(unsafe=numbered(6), safe=numbered(6), neutral=numbered(10), top_k=6))
    assert sorted(left_out) == [*range(6)]


def test_sides_of_two_rows_are_left_out_one_by_one():
    seen = []

    def fit(made):
        seen.append([made.unsafe["last"].tolist(), made.safe["last"].tolist(), len(made.neutral["last"])])
        return lambda states: states["last"][:, :, 0]

    got = held_out(fit, ReferenceStates(unsafe=numbered(2), safe=numbered(2), neutral=numbered(10)))
    assert sorted(seen) == [[[[[kept]]], [[[kept]]], 5] for kept in (0.0, 1.0)]
    assert got.unsafe.tolist() == got.safe.tolist() == [[0], [1]]


def test_one_reference_cannot_be_left_out():
    one = ReferenceStates(unsafe=drawn(1, 1), safe=drawn(6, 2), neutral=drawn(10, 3))
    with pytest.raises(ReferenceSetError, match="at least 2"):
        held_out(SIGNALS["larf"].fit, one)
