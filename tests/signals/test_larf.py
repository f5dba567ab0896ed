import numpy as np
import pytest
from numpy.testing import assert_allclose

from larf_curate.errors import ReferenceSetError
from larf_curate.signals import SIGNALS, ReferenceStates
from larf_curate.signals.larf import LarfSignal
from larf_curate.signals.protocol import unit


def states(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def naive(rows, unsafe, safe, top_k=None):
    """The formula of the paper, one cosine at a time, in float64."""

    def cosine(a, b):
        return float(
            a.astype(float) @ b.astype(float) / np.linalg.norm(a.astype(float)) / np.linalg.norm(b.astype(float))
        )

    def score(row, layer):
        pairs = [cosine(row[layer], u[layer]) - cosine(row[layer], s[layer]) for u, s in zip(unsafe, safe, strict=True)]
        return sum(sorted(pairs, reverse=True)[: top_k or len(pairs)]) / (top_k or len(pairs))

    return np.array([[score(row, layer) for layer in range(rows.shape[1])] for row in rows])


@pytest.mark.parametrize("top_k", [None, 1, 3, 6, 7])
def test_equals_the_naive_double_loop(top_k):
    rows, unsafe, safe = states(5, 2, 8), states(7, 2, 8, seed=1), states(7, 2, 8, seed=2)
    got = LarfSignal(unsafe=unsafe, safe=safe, top_k=top_k)(rows)
    assert got.dtype == np.float32
    assert_allclose(got, naive(rows, unsafe, safe, top_k), atol=1e-6)


def test_all_pairs_counted_as_a_number_equal_all_pairs():
    unsafe, safe = states(7, 2, 8, seed=1), states(7, 2, 8, seed=2)
    rows = states(5, 2, 8)
    every, seven = (LarfSignal(unsafe=unsafe, safe=safe, top_k=k)(rows) for k in (None, 7))
    assert_allclose(every, seven, atol=1e-6)


def test_unequal_sides_compare_the_mean_cosines():
    rows, unsafe, safe = states(4, 1, 8), states(5, 1, 8, seed=1), states(3, 1, 8, seed=2)
    want = (unit(rows)[:, 0] @ unit(unsafe)[:, 0].T).mean(1) - (unit(rows)[:, 0] @ unit(safe)[:, 0].T).mean(1)
    assert_allclose(LarfSignal(unsafe=unsafe, safe=safe)(rows)[:, 0], want, atol=1e-6)


def test_nearer_to_unsafe_scores_higher_and_the_range_is_two():
    side = np.zeros((1, 1, 4), np.float32)
    side[..., 0] = 3
    signal = LarfSignal(unsafe=side, safe=-side)
    assert_allclose(signal(np.concatenate([side * 9, -side, side * 0])), [[2], [-2], [0]], atol=1e-6)


def test_the_length_of_a_state_does_not_matter():
    rows, unsafe, safe = states(4, 2, 8), states(5, 2, 8, seed=1), states(5, 2, 8, seed=2)
    for top_k in (None, 2):
        assert_allclose(
            LarfSignal(unsafe=unsafe * 7, safe=safe * 0.1, top_k=top_k)(rows * 1000),
            LarfSignal(unsafe=unsafe, safe=safe, top_k=top_k)(rows),
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("unsafe", "safe", "top_k", "message"),
    [
        (states(0, 1, 8), states(3, 1, 8), None, "at least one"),
        (states(3, 1, 8), states(3, 1, 7), None, "same layers and width"),
        (states(3, 1, 8), states(3, 2, 8), None, "same layers and width"),
        (states(3, 1, 8), states(2, 1, 8), 1, "pair"),
        (states(3, 1, 8), states(3, 1, 8), 4, "from 1 to 3"),
        (states(3, 1, 8), states(3, 1, 8), 0, "from 1 to 3"),
    ],
)
def test_references_that_do_not_suit_are_refused(unsafe, safe, top_k, message):
    with pytest.raises(ReferenceSetError, match=message):
        LarfSignal(unsafe=unsafe, safe=safe, top_k=top_k)


def test_the_registered_signal_reads_the_last_token():
    rows, unsafe, safe = states(4, 2, 8), states(5, 2, 8, seed=1), states(5, 2, 8, seed=2)
    kind = SIGNALS["larf"]
    assert kind.positions == {"last"}
    neutral = states(3, 2, 8, seed=4)
    refs = ReferenceStates(unsafe={"last": unsafe}, safe={"last": safe}, neutral={"last": neutral}, top_k=2)
    signal = kind.fit(refs)
    assert_allclose(signal({"last": rows}), naive(rows, unsafe, safe, 2), atol=1e-6)


def test_unit_vectors_have_length_one_and_zero_stays_zero():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    assert_allclose(unit(vectors), [[0.6, 0.8], [0, 0]], atol=1e-7)
