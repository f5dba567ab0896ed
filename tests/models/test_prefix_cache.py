"""Common beginnings: which rows share one, and that running it once changes nothing."""

from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from larf_curate.conversation.truncation import Tokens, Turn
from larf_curate.models.loading import load_reader
from larf_curate.models.prefix_cache import MIN_PREFIX, MIN_SAVING, cache_argument, group_by_prefix, run_prefix
from larf_curate.models.source import ModelSource
from larf_curate.states import POSITIONS
from tests.fixtures.tiny import tiny_model


@pytest.mark.parametrize(
    ("conversations", "limits", "length"),
    [
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]], 10, 5),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7]], 4, 4),
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 7]], 10, 5),
        ([[1, 2, 3, 9], [1, 2, 3, 4]], 10, 0),
        ([[1, 2, 3, 4, 5]], 10, 0),
        ([[1, 2, 3, 4, 5], [9, 2, 3, 4, 5]], 10, 0),
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], -1, 0),
    ],
)
def test_rows_that_all_begin_alike_are_one_group_within_the_limit_if_it_pays(conversations, limits, length):
    assert MIN_PREFIX == 4
    assert group_by_prefix(conversations, [limits] * len(conversations)) == [(length, list(range(len(conversations))))]


def test_one_odd_row_does_not_take_the_beginning_from_the_others():
    head = list(range(40))
    rows = [[*head, 90], [*head, 91], [7, 8, 9, 10, 11], [*head, 92]]
    assert group_by_prefix(rows, [50] * 4) == [(40, [0, 1, 3]), (0, [2])]
    assert MIN_SAVING > 40
    assert group_by_prefix(rows, [50, 3, 50, 50]) == [(0, [0, 1, 2, 3])], "40 tokens saved do not pay for a batch"


def test_several_beginnings_are_groups_of_their_own():
    one, other = list(range(100)), list(range(500, 570))
    rows = [[*one, 1], [*other, 1], [*one, 2], [*other, 2], [*other, 3], [3, 4, 5]]
    assert group_by_prefix(rows, [200] * 6) == [(70, [1, 3, 4]), (100, [0, 2]), (0, [5])]


def naive_best_saving(heads):
    """Most tokens that one common beginning of any set of rows saves."""
    best = 0
    for size in range(2, len(heads) + 1):
        for members in combinations(heads, size):
            shared = 0
            while all(len(m) > shared for m in members) and len({m[shared] for m in members}) == 1:
                shared += 1
            best = max(best, shared * (size - 1))
    return best


def test_the_first_group_saves_the_most_that_any_can():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(50):
        trunk = rng.integers(2, size=60).tolist()
        rows = [trunk[: rng.integers(60)] + rng.integers(2, size=5).tolist() for _ in range(7)]
        limits = rng.integers(70, size=7).tolist()
        groups = group_by_prefix(rows, limits)
        assert sorted(place for _, members in groups for place in members) == list(range(7))
        for length, members in groups:
            assert len({tuple(rows[m][:length]) for m in members}) == 1
            assert all(length <= limits[m] for m in members if length)
        length, members = groups[0]
        if length:
            found += 1
            assert length * (len(members) - 1) == naive_best_saving(
                [row[:limit] for row, limit in zip(rows, limits, strict=True)]
            )
    assert found > 20


def conversations(rng, heads):
    """Rows that begin with one of the heads each, read from behind it."""
    bodies = [rng.integers(3, 200, rng.integers(6, 20)).tolist() for _ in heads]
    return [
        Tokens(head + body, (Turn(len(head) + 2, len(head) + len(body) - 1),))
        for head, body in zip(heads, bodies, strict=True)
    ]


def test_rows_of_several_beginnings_get_the_states_they_get_alone(tiny_llama):
    rng = np.random.default_rng(0)
    reader = load_reader(ModelSource(model_id=str(tiny_llama), dtype="float32"), (1, 4), device="cpu", batch_tokens=100)
    one, other = (rng.integers(3, 200, n).tolist() for n in (40, 70))
    rows = conversations(rng, [one, other, [], one, one, other, [5, 6], one])
    assert [length for length, _ in reader._groups(rows)] == [40, 70, 0]
    together = reader(rows, POSITIONS)
    for position, values in together.items():
        alone = np.concatenate([reader([row], POSITIONS)[position] for row in rows])
        assert_allclose(values, alone, atol=1e-4)


@pytest.mark.parametrize("window", [None, 4, 9, 100])
def test_a_kept_beginning_serves_many_batches_and_never_grows(window):
    model = tiny_model("Mistral", layers=2, sliding_window=window).model
    rng = np.random.default_rng(0)
    head = rng.integers(50, size=12).tolist()
    with torch.inference_mode():
        prefix = run_prefix(model, head, torch.device("cpu"))
        before = [layer.keys.clone() for layer in prefix.cache.layers]
        for rows in (3, 1, 5):
            rest = torch.tensor(rng.integers(50, size=(rows, 7)))
            whole = torch.cat([torch.tensor([head]).expand(rows, -1), rest], dim=1)
            got = model(
                input_ids=rest, use_cache=True, **cache_argument(model, prefix.for_batch(rows))
            ).last_hidden_state
            want = model(input_ids=whole).last_hidden_state[:, 12:]
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    for layer, keys in zip(prefix.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_a_beginning_that_does_not_fit_into_memory_is_not_run_apart(tiny_llama, monkeypatch):
    reader = load_reader(ModelSource(model_id=str(tiny_llama), dtype="float32"), (1,), device="cpu")
    rng = np.random.default_rng(0)
    rows = conversations(rng, [rng.integers(3, 200, 40).tolist()] * 3)
    want = reader(rows)["last"]

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("larf_curate.models.hidden_states.run_prefix", fail)
    assert_allclose(reader(rows)["last"], want, atol=1e-5)
