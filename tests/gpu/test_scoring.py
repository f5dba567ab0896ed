"""States, scores and attention on the GPU against the CPU."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import spearmanr

from larf_curate import LarfScorer, SafetyProfile
from tests.fixtures.gpu import needs_gpu
from tests.fixtures.models import PROFILE, six_pairs
from tests.gpu.sections import reader_of
from tests.gpu.shapes import SMOL, random_model, random_rows

pytestmark = [*needs_gpu, pytest.mark.usefixtures("own_caches")]
ROWS = [{"question": f"What is {n}?", "answer": f"It is {n * n}, " * (n % 7 + 1)} for n in range(40)]
DEEPEST = 9


@pytest.fixture(scope="module")
def large():
    """A model in SmolLM2's shape on the GPU."""
    return random_model(SMOL, "cuda", torch.float32, layers=DEEPEST + 1)


def profile_on(device, model, dtype="float32"):
    settings = {**PROFILE, "signal": "combined", "dtype": dtype, "device": device}
    return SafetyProfile.build(model, six_pairs(), layers=[2, 3], **settings)


def scores_on(device, model, dtype="float32"):
    scorer = LarfScorer(profile_on(device, model, dtype), device=device)
    return np.array(Dataset.from_list(ROWS).map(scorer, batched=True)["larf_score"])


def test_scores_equal_those_of_the_cpu(tiny_llama):
    wanted = scores_on("cpu", tiny_llama)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(scores_on("cuda", tiny_llama), wanted, atol=1e-2)
    assert spearmanr(scores_on("cuda", tiny_llama, "bfloat16"), wanted).statistic > 0.95


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_processes_on_several_gpus_give_the_scores_of_one(tiny_llama):
    rows, scorer = Dataset.from_list(ROWS), LarfScorer(profile_on("cuda:0", tiny_llama))
    one = rows.map(LarfScorer(scorer.profile, device="cuda:0"), batched=True)
    both = rows.map(scorer, batched=True, with_rank=True, num_proc=2)
    np.testing.assert_allclose(both["larf_score"], one["larf_score"], atol=1e-3)


def test_states_equal_those_of_the_cpu(large):
    rows = random_rows(12, SMOL.vocab_size)
    got = reader_of(large, DEEPEST)(rows, ("last", "prompt", "mean"))
    on_cpu = random_model(SMOL, "cpu", torch.float32, layers=DEEPEST + 1)
    on_cpu.load_state_dict(large.state_dict())  # another generator of random numbers made other weights
    wanted = reader_of(on_cpu, DEEPEST)(rows, ("last", "prompt", "mean"))
    for position, states in wanted.items():
        np.testing.assert_allclose(got[position], states, rtol=1e-2, atol=1e-3 * np.abs(states).max())


def test_a_batch_that_does_not_fit_is_halved(large):
    rows = random_rows(64, SMOL.vocab_size, length=256)
    wanted = reader_of(large, DEEPEST, batch_tokens=512)(rows)["last"]
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64e6) / total)
    try:
        reader = reader_of(large, DEEPEST, batch_tokens=64 * 256)
        got = reader(rows)["last"]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert reader.batch_tokens < 64 * 256
    np.testing.assert_allclose(got, wanted, rtol=1e-2, atol=1e-3 * np.abs(wanted).max())


@pytest.mark.skipif(find_spec("flash_attn") is None, reason="needs flash-attn")
def test_flash_attention_reads_the_states_of_sdpa():
    model = random_model(SMOL, "cuda", torch.bfloat16, layers=DEEPEST + 1)
    rows, states = random_rows(32, SMOL.vocab_size), {}
    for kind in ("sdpa", "flash_attention_2"):
        model.set_attn_implementation(kind)
        states[kind] = reader_of(model, DEEPEST)(rows)["last"]
    difference = np.linalg.norm(states["sdpa"] - states["flash_attention_2"])
    assert difference < 0.02 * np.linalg.norm(states["sdpa"])
