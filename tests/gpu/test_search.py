"""Nearest exemplars found by FAISS on the GPU against those of the CPU."""

import faiss
import numpy as np
import pytest

from larf_curate.scoring import search
from larf_curate.scoring.search import build_search
from larf_curate.signals.protocol import unit
from tests.fixtures.gpu import needs_gpu

pytestmark = [
    *needs_gpu,
    pytest.mark.skipif(not hasattr(faiss, "StandardGpuResources"), reason="needs faiss-gpu, the extra [gpu]"),
]
WIDTH = 64


def units(count, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, WIDTH))
    return unit(centres[rng.integers(40, size=count)] + 0.3 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def test_an_exact_search_finds_what_numpy_finds():
    vectors, queries = units(5000, 1), units(200, 2)
    cosines, found = build_search(vectors).index.search(queries, 10)
    truth = queries.astype(float) @ vectors.astype(float).T
    np.testing.assert_allclose(cosines, -np.sort(-truth, axis=1)[:, :10], atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(truth, found, axis=1), cosines, atol=1e-4)


def test_an_approximate_search_finds_what_it_finds_on_the_cpu(monkeypatch):
    monkeypatch.setattr(search, "EXACT_UP_TO", 500)
    monkeypatch.setattr(search, "HELD_OUT", 200)
    vectors, queries = units(8000, 1), units(300, 2)
    on_gpu = build_search(vectors, queries)
    monkeypatch.setattr(search, "_on_gpus", lambda _, index: index)
    on_cpu = build_search(vectors, queries)
    assert (on_gpu.kind, on_gpu.recall) == (on_cpu.kind, on_cpu.recall) == ("ivf", on_cpu.recall)
    np.testing.assert_allclose(*(each.index.search(queries, 10)[0] for each in (on_gpu, on_cpu)), atol=1e-4)
