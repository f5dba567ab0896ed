"""Similarity to the nearest neighbours among the references of each side, searched with FAISS."""

from typing import Any

import numpy as np

from larf_curate.extras import require
from larf_curate.signals.protocol import ReferenceStates, Signal, unit
from larf_curate.states import Vectors

NEIGHBORS = 5


def knn(refs: ReferenceStates) -> Signal:
    """Mean cosine to the 5 nearest unsafe references minus that to the 5 nearest others; in [-2, 2], higher is unsafe.

    The others are safe references and neutral rows together; all states are centred by the neutral mean first.

    Source: deep nearest neighbours, Sun et al., https://arxiv.org/abs/2204.06507.
    """
    mean = refs.neutral["last"].mean(axis=0)
    unsafe = _build_indexes(refs.unsafe["last"] - mean)
    others = _build_indexes(np.concatenate([refs.safe["last"], refs.neutral["last"]]) - mean)
    return lambda states: _mean_cosine(states["last"] - mean, unsafe) - _mean_cosine(states["last"] - mean, others)


def _build_indexes(side: Vectors) -> list[Any]:
    """One exact inner-product index per layer, of the normalised states."""
    # Imported only here, since FAISS is an optional dependency.
    faiss = require("faiss", extra="cpu")
    indexes = [faiss.IndexFlatIP(side.shape[2]) for _ in range(side.shape[1])]
    for i, index in enumerate(indexes):
        index.add(np.ascontiguousarray(unit(side)[:, i]))
    return indexes


def _mean_cosine(rows: Vectors, indexes: list[Any]) -> Vectors:
    """Mean cosine of rows to their nearest neighbours at each layer, shape (n, layers)."""
    rows = unit(rows)
    cosines = [
        index.search(np.ascontiguousarray(rows[:, i]), min(NEIGHBORS, index.ntotal))[0]
        for i, index in enumerate(indexes)
    ]
    return np.stack([nearest.mean(axis=1) for nearest in cosines], axis=1)
