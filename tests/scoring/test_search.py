"""Search of the nearest exemplars: exact up to a number, beyond it approximate with the recall that numpy finds."""

from dataclasses import replace
from types import SimpleNamespace

import faiss
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from larf_curate.scoring import search
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.search import build_search

COUNT, WIDTH = 4000, 32


@pytest.fixture
def small_limit(monkeypatch):
    """More than 500 exemplars are searched approximately."""
    monkeypatch.setattr(search, "EXACT_UP_TO", 500)
    monkeypatch.setattr(search, "HELD_OUT", 200)


def states_around(topics, count, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(topics).normal(size=(40, WIDTH))
    return (centres[rng.integers(40, size=count)] + 0.3 * rng.normal(size=(count, WIDTH))).astype(np.float32)


def index_of(states, **changes):
    names = tuple(map(str, range(len(states))))
    return ExemplarIndex(states=states, ids=names, labels=names, layer=0, **changes)


@pytest.fixture(scope="module")
def harmful():
    return states_around(1, COUNT, seed=2)


def cosines(queries, states):
    """Naive cosines in double precision, shape (queries, states)."""
    queries, states = queries.astype(float), states.astype(float)
    return queries @ states.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(states, axis=1)


def found_ids(index, queries, k):
    return np.array([[int(neighbor.id) for neighbor in hits] for hits in index.search(queries, k)])


def recall(index, queries, k=10, centre=0):
    nearest = np.argsort(-cosines(queries - centre, index.states - centre), axis=1)[:, :k]
    found = found_ids(index, queries, k)
    return np.mean([len({*a} & {*b}) / k for a, b in zip(nearest, found, strict=True)])


def test_up_to_the_limit_search_is_exact_and_silent(harmful, small_limit, caplog):
    index = index_of(harmful[:500])
    assert (index.kind, index.recall) == ("flat", 1)
    assert "_search" not in vars(index), "known without building"
    assert recall(index, states_around(1, 300, seed=3)) == 1
    assert not caplog.records


def test_beyond_the_limit_search_has_the_recall_that_it_reports(harmful, small_limit, caplog):
    index = index_of(harmful)
    queries = states_around(1, 500, seed=3)
    hits = index.search(queries, 5)
    found = np.array([[neighbor.cosine for neighbor in row] for row in hits])
    truth = np.take_along_axis(cosines(queries, harmful), found_ids(index, queries, 5), axis=1)
    assert_allclose(found, truth, atol=1e-5)
    assert (np.diff(found) <= 0).all()
    assert index.kind == "ivf"
    assert index._search.index.nprobe <= index._search.index.nlist // 4
    assert 0.95 <= index.recall < 1
    assert recall(index, queries) == pytest.approx(index.recall, abs=0.03)
    assert f"{COUNT} exemplars are searched approximately" in caplog.text
    assert f"{100 * index.recall:.1f} % of the nearest 10" in caplog.text


def test_the_recall_holds_for_states_that_are_unlike_the_exemplars(harmful, small_limit):
    harmless, others = (10 + states_around(4, 300, seed=seed) for seed in (5, 6))
    centre = np.full(WIDTH, 10, np.float32)
    without = index_of(10 + harmful, centre=centre)
    index = replace(without, typical=harmless)
    assert recall(without, others, centre=centre) < 0.95 <= index.recall
    assert recall(index, others, centre=centre) == pytest.approx(index.recall, abs=0.03)
    assert index.recall == pytest.approx(index_of(harmful, typical=harmless - 10).recall, abs=0.002)


def test_an_exemplar_is_not_a_neighbor_of_its_own_for_the_recall(harmful, small_limit, monkeypatch):
    monkeypatch.setattr(search, "RECALL_AT", 1)
    index = index_of(harmful)
    assert index.recall < 1, "each finds itself by reading one list"
    assert index._search.index.nprobe > 1


def test_of_copies_any_may_be_found(harmful, small_limit):
    copies = index_of(np.repeat(harmful[:400], 12, axis=0))  # the nearest ten of each are its copies
    assert (copies.kind, copies.recall, copies._search.index.nprobe) == ("ivf", 1, 1)


def test_states_without_structure_are_searched_exactly_and_a_warning_says_so(small_limit, caplog):
    states = np.random.default_rng(0).normal(size=(1024, 256)).astype(np.float32)
    index = index_of(states)
    assert (index.kind, index.recall) == ("flat", 1)
    assert "1024 exemplars are searched exactly, which is slow" in caplog.text
    assert recall(index, np.random.default_rng(1).normal(size=(50, 256)).astype(np.float32)) == 1


def test_more_neighbors_than_the_lists_have_are_all_found(harmful, small_limit):
    index = index_of(harmful)
    alone = states_around(1, 1, seed=3)
    assert_array_equal(np.sort(found_ids(index, alone, COUNT)), [range(COUNT)])
    order = np.argsort(-cosines(alone, harmful), axis=1)
    assert_allclose(
        [neighbor.cosine for neighbor in index.search(alone, COUNT)[0]],
        np.take_along_axis(cosines(alone, harmful), order, axis=1)[0],
        atol=1e-5,
    )


def test_all_processes_build_the_same_whatever_their_threads(harmful, small_limit):
    vectors = np.ascontiguousarray(harmful / np.linalg.norm(harmful, axis=1, keepdims=True))
    before, built = faiss.omp_get_max_threads(), []
    try:
        for threads in (1, 3):
            faiss.omp_set_num_threads(threads)
            built.append(build_search(vectors))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    one, other = (faiss.serialize_index(found.index) for found in built)
    assert_array_equal(one, other)
    assert built[0].recall == built[1].recall


def test_a_copy_for_another_process_is_searched_alike(harmful, small_limit):
    index = index_of(harmful, typical=states_around(4, 100, seed=5))
    queries = states_around(4, 50, seed=6)
    assert replace(index).search(queries, 3) == index.search(queries, 3)
    assert replace(index, typical=None).digest == index.digest


@pytest.mark.parametrize("limit", [500, 5000])
def test_each_of_several_gpus_gets_a_part(harmful, monkeypatch, limit):
    """The calls as FAISS documents them; they have not run on a GPU."""
    calls = []
    monkeypatch.setattr(search, "EXACT_UP_TO", limit)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    monkeypatch.setattr(faiss, "GpuMultipleClonerOptions", SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", lambda index, co: calls.append((index, co)) or index)
    index = index_of(harmful)
    index.search(harmful[:1], 1)
    ((moved, options),) = calls
    assert options.shard is True
    assert moved.ntotal == COUNT
    assert isinstance(moved, faiss.IndexFlatIP if limit == 5000 else faiss.IndexIVFFlat)
