"""What scoring leaves out: each shortcut alone gives the same states, and really leaves the work out."""

import logging
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from larf_curate.conversation.truncation import Tokens, Turn
from larf_curate.errors import ScoringError
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.loading import load_reader
from larf_curate.models.source import ModelSource
from larf_curate.models.token_trimming import SHORTCUTS
from larf_curate.states import POSITIONS

PREFIX = 12
CPU_FULL = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.fixture
def reader(tiny_llama):
    source = ModelSource(model_id=str(tiny_llama), dtype="float32")
    return replace(load_reader(source, (1, 3), device="cpu"), batch_tokens=100)


@pytest.fixture
def rows():
    """Eight rows of 18 to 46 tokens that begin alike; three of them are the same."""
    rng = np.random.default_rng(0)
    head = rng.integers(3, 200, PREFIX).tolist()
    lengths = [18, 30, 24, 46, 18, 39]
    items = [Tokens(head + rng.integers(3, 200, n - PREFIX).tolist(), (Turn(15, n - 1),)) for n in lengths]
    return [items[2], *items, items[2]]


def only(reader, *shortcuts):
    return replace(reader, shortcuts=frozenset(shortcuts))


@contextmanager
def inputs_of(*modules):
    """Shapes of the first inputs that modules get."""
    shapes = []
    handles = [
        m.register_forward_hook(
            lambda _m, args, kwargs, _out: shapes.append((args or list(kwargs.values()))[0].shape), with_kwargs=True
        )
        for m in modules
    ]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def tokens_through(reader, rows, module, positions=("last",)):
    with inputs_of(module) as shapes:
        reader(rows, positions)
    return sum(shape[:2].numel() for shape in shapes)


@pytest.mark.parametrize("shortcut", sorted(SHORTCUTS))
def test_each_shortcut_alone_gives_the_states_of_none(reader, rows, shortcut):
    want = only(reader)(rows, POSITIONS)
    got = only(reader, shortcut)(rows, POSITIONS)
    for position in POSITIONS:
        assert_allclose(got[position], want[position], atol=1e-4)
    assert np.abs(want["last"]).max() > 0.1


def test_all_shortcuts_are_on_by_default(reader):
    assert reader.shortcuts == SHORTCUTS == {"dedupe", "prefix", "trim"}


def test_identical_conversations_run_once_and_the_rest_in_their_order(reader, rows):
    one_by_one = replace(only(reader, "dedupe"), batch_tokens=1)
    assert tokens_through(one_by_one, rows, decoder_blocks(reader.model)[0]) == 18 + 30 + 24 + 46 + 18 + 39
    states = one_by_one(rows)["last"]
    assert_array_equal(states[0], states[3])
    assert_array_equal(states[0], states[7])


def test_the_same_tokens_with_other_turns_are_read_apart(reader, rows):
    other = Tokens(rows[0].ids, (Turn(13, 16), Turn(18, 23)))
    states = only(reader, "dedupe")([rows[0], other, rows[0]])["last"]
    want = only(reader)([rows[0], other, rows[0]])["last"]
    assert len(states) == 4
    assert_allclose(states, want, atol=1e-4)


def test_the_common_beginning_runs_once(reader, rows):
    one_by_one = replace(only(reader, "prefix"), batch_tokens=1)
    want = PREFIX + sum(len(row.ids) - PREFIX for row in rows)
    assert tokens_through(one_by_one, rows, decoder_blocks(reader.model)[0]) == want


def test_the_beginning_ends_before_the_first_token_that_is_read(reader, rows):
    early = [Tokens(row.ids, (Turn(8, len(row.ids) - 1),)) for row in rows]
    one_by_one = replace(only(reader, "prefix"), batch_tokens=1)
    want = 7 + sum(len(row.ids) - 7 for row in rows)
    assert tokens_through(one_by_one, early, decoder_blocks(reader.model)[0], ("prompt",)) == want
    assert_allclose(one_by_one(early, ("prompt",))["prompt"], only(reader)(early, ("prompt",))["prompt"], atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "self_attn.q_proj", "self_attn.o_proj"])
def test_in_the_last_block_only_the_tokens_that_are_read_go_on(reader, rows, name):
    *others, last = decoder_blocks(reader.model)
    trimmed = only(reader, "trim")
    with inputs_of(last.get_submodule(name).down_proj if name == "mlp" else last.get_submodule(name)) as shapes:
        trimmed(rows)
    assert sum(shape[:-1].numel() for shape in shapes) == len(rows)
    assert tokens_through(trimmed, rows, others[-1].get_submodule("mlp")) >= sum(len(row.ids) for row in rows)
    assert tokens_through(trimmed, rows, last.self_attn.k_proj) >= sum(len(row.ids) for row in rows)


def test_all_that_any_position_reads_goes_on(reader, rows):
    last = decoder_blocks(reader.model)[-1]
    read = {(i, place) for i, row in enumerate(rows) for place in range(row.turns[0].start - 1, row.turns[0].end + 1)}
    with inputs_of(last.mlp.down_proj) as shapes:
        only(reader, "trim")(rows, POSITIONS)
    assert sum(shape[:-1].numel() for shape in shapes) == len(read)


def test_no_hook_of_a_shortcut_outlives_a_failed_pass(reader, rows, monkeypatch):
    def fail(*_):
        raise KeyError("broken")

    monkeypatch.setattr(decoder_blocks(reader.model)[-1].mlp, "forward", fail)
    with pytest.raises(KeyError):
        reader(rows)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in reader.model.modules())


@pytest.fixture
def small_device(reader, monkeypatch):
    """Let forward passes of more than so many tokens run out of memory, in the device's own words."""
    forward = type(reader.model).forward

    def shrink(limit, error):
        @wraps(forward)
        def narrow(self, input_ids, **options):
            if input_ids.numel() > limit:
                raise error
            return forward(self, input_ids, **options)

        monkeypatch.setattr(type(reader.model), "forward", narrow)

    return shrink


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_FULL)], ids=str)
@pytest.mark.parametrize("shortcuts", [SHORTCUTS, frozenset()], ids=["shortcuts", "plain"])
def test_out_of_memory_halves_the_batches_says_so_once_and_loses_no_row(
    reader, rows, shortcuts, error, small_device, caplog
):
    reader = replace(reader, shortcuts=shortcuts, batch_tokens=1000)
    want = reader(rows, POSITIONS)
    small_device(60, error)
    with caplog.at_level(logging.WARNING):
        got = reader(rows, POSITIONS)
        again = reader(rows, POSITIONS)
    for position in POSITIONS:
        assert_allclose(got[position], want[position], atol=1e-4)
        assert_allclose(again[position], want[position], atol=1e-4)
    assert [record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()] == [
        "out of memory: continuing with smaller batches"
    ]
    assert 46 <= reader.batch_tokens < 120


def test_a_row_that_does_not_fit_alone_is_an_error_with_a_remedy(reader, rows, small_device):
    small_device(20, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ScoringError, match="lower max_length"):
        reader(rows)


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory(reader, rows, small_device):
    small_device(20, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        reader(rows)
