"""Search of the nearest vectors by inner product (FAISS): exact while that is cheap, else approximate, with its recall.

Inverted lists (IVF): k-means divides the vectors into lists, and a search reads only the lists whose centroids are
nearest. Sivic and Zisserman, 2003, https://doi.org/10.1109/ICCV.2003.1238663; as implemented in FAISS, Douze et al.,
https://arxiv.org/abs/2401.08281. Graphs (HNSW) are compared with it by ``tests/benchmarks/exemplars.py``.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from larf_curate.extras import require
from larf_curate.models.threads import worker_threads
from larf_curate.states import Vectors

logger = logging.getLogger(__name__)

EXACT = "flat"
"""Kind of an exact search."""
EXACT_UP_TO = 100_000
"""Largest number of vectors that are always searched exactly: 2·n·d operations per state, at most about a hundredth of
what a model of that width needs to compute it."""
APPROXIMATE = "ivf-1"
"""Version of the approximate search; raised whenever the same vectors give other neighbours."""
MIN_RECALL = 0.95
"""Smallest recall of an approximate search."""
RECALL_AT = 10
"""Number of nearest vectors of which the recall is measured."""
HELD_OUT = 1_000
"""Number of vectors that k-means does not see, and that are searched for to measure the recall."""
TRAINED_PER_LIST = 64
"""Number of vectors per list that k-means uses."""
TIE = 1e-6
"""Difference of cosines that counts as none."""

NOT_INDEXED = -2
"""Number of a query that is not among the vectors; FAISS has -1 where it finds fewer vectors than wanted."""
Ids: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class VectorSearch:
    """An index of vectors.

    Args:
        index: The FAISS index.
        kind: ``flat``, which is exact, or ``ivf``, which reads some of its inverted lists.
        recall: Share of the 10 nearest vectors that a search finds, measured; 1 if it is exact.
    """

    index: Any
    kind: str = EXACT
    recall: float = 1.0


def is_exact(count: int) -> bool:
    """Whether a number of vectors is always searched exactly."""
    return count <= EXACT_UP_TO


def build_search(vectors: Vectors, queries: Vectors | None = None) -> VectorSearch:
    """Index vectors, on all GPUs if FAISS was built with GPU support and there are any, else on the CPU.

    How they are searched depends on them and the queries alone, not on the device or the number of threads, so that all
    processes find the same. It is exact up to `EXACT_UP_TO` vectors, and beyond if too few of the nearest are in a
    quarter of the lists.

    Args:
        vectors: Shape (n, d), of length 1.
        queries: Vectors like those that will be searched for, shape (m, d), of length 1, to measure the recall; it is
            also measured for some of the vectors themselves, and the smaller value counts.
    """
    faiss = require("faiss", extra="cpu")
    if threads := worker_threads():  # FAISS would use all cores in every worker process
        faiss.omp_set_num_threads(threads)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    if is_exact(len(vectors)):
        return VectorSearch(index=_on_gpus(faiss, flat))
    with _single_thread(faiss):
        lists, recall = _build_lists(faiss, vectors, flat, queries)
    if recall < MIN_RECALL:
        logger.warning(
            "%d exemplars are searched exactly, which is slow: a quarter of them has only %.1f %% of the nearest %d",
            *(len(vectors), 100 * recall, RECALL_AT),
        )
        return VectorSearch(index=_on_gpus(faiss, flat))
    logger.warning(
        "%d exemplars are searched approximately (%d of %d inverted lists), which finds %.1f %% of the nearest %d",
        *(len(vectors), lists.nprobe, lists.nlist, 100 * recall, RECALL_AT),
    )
    return VectorSearch(index=_on_gpus(faiss, lists), kind="ivf", recall=recall)


def exact_search(queries: Vectors, vectors: Vectors, k: int) -> tuple[Vectors, Ids]:
    """Cosines and numbers of the k nearest vectors of each query, both of shape (m, k), without an index."""
    faiss = require("faiss", extra="cpu")
    cosines, found = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
    return cosines, found


def _build_lists(faiss: Any, vectors: Vectors, flat: Any, queries: Vectors | None) -> tuple[Any, float]:  # noqa: ANN401
    """Inverted lists of all vectors, and the recall of a search in as many of them as it takes, up to a quarter."""
    order = np.random.default_rng(0).permutation(len(vectors))
    held_out, rest = order[:HELD_OUT], order[HELD_OUT:]
    lists = _train_lists(faiss, vectors, rest)
    truths = [_Truth.of(flat, vectors[held_out], held_out)]
    truths += [] if queries is None else [_Truth.of(flat, queries, np.full(len(queries), NOT_INDEXED))]
    recall, probes = 0.0, 1
    while recall < MIN_RECALL and probes <= max(1, lists.nlist // 4):
        lists.nprobe = probes
        recall = min(truth.recall(lists) for truth in truths)
        probes *= 2
    return lists, recall


def _train_lists(faiss: Any, vectors: Vectors, rest: Ids) -> Any:  # noqa: ANN401  faiss has no types
    """Inverted lists of all vectors, whose centroids are the means of some of the rest."""
    width, count = vectors.shape[1], round(2 * len(vectors) ** 0.5)
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, count, faiss.METRIC_INNER_PRODUCT)
    lists.cp.spherical = True  # centroids of length 1, as the vectors
    lists.cp.max_points_per_centroid = TRAINED_PER_LIST
    lists.train(vectors[rest[: count * TRAINED_PER_LIST]])
    lists.add(vectors)
    return lists


@dataclass(frozen=True, kw_only=True, eq=False)
class _Truth:
    """Queries whose nearest vectors are known.

    Args:
        queries: Shape (m, d).
        own: Number of each query among the vectors, which is not one of its neighbours, or `NOT_INDEXED`.
        least: Cosine of the last of the nearest, shape (m, 1).
    """

    queries: Vectors
    own: Ids
    least: Vectors

    @classmethod
    def of(cls, flat: Any, queries: Vectors, own: Ids) -> "_Truth":  # noqa: ANN401
        return cls(queries=queries, own=own, least=_nearest(flat, queries, own)[:, -1:])

    def recall(self, index: Any) -> float:  # noqa: ANN401
        """Share of the nearest vectors that a search finds; of equally near ones, it may find any."""
        return float((_nearest(index, self.queries, self.own) >= self.least - TIE).mean())


def _nearest(index: Any, queries: Vectors, own: Ids) -> Vectors:  # noqa: ANN401
    """Cosines of the nearest vectors but for the query's own, shape (m, 10), highest first."""
    cosines, found = index.search(queries, RECALL_AT + 1)
    others = np.where(found == own[:, None], -np.inf, cosines)
    return np.asarray(-np.sort(-others, axis=1)[:, :RECALL_AT], np.float32)


def _on_gpus(faiss: Any, index: Any) -> Any:  # noqa: ANN401
    """The index on all GPUs, each of which has a part of the vectors; without any, the index itself."""
    if not (hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0):
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.shard = True  # else each GPU would hold all vectors
    return faiss.index_cpu_to_all_gpus(index, co=options)


@contextmanager
def _single_thread(faiss: Any) -> Iterator[None]:  # noqa: ANN401
    """Let FAISS use one thread: sums in another order would give other centroids."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
