"""Similarity to the nearest references of each side, by FAISS."""

from typing import Any

import numpy as np

from larf_curate.extras import require
from larf_curate.signals.protocol import ReferenceStates, Signal, unit
from larf_curate.states import Vectors

NEIGHBORS = 5


def knn(refs: ReferenceStates) -> Signal:
    """Mean cosine to the 5 nearest unsafe references less that to the 5 nearest others; in [-2, 2], higher is unsafe.

    Source: deep nearest neighbours, Sun et al., https://arxiv.org/abs/2204.06507, on states less the neutral mean. The
    others are safe references and neutral rows together.
    """
    mean = refs.neutral["last"].mean(axis=0)
    unsafe = _indexes(refs.unsafe["last"] - mean)
    others = _indexes(np.concatenate([refs.safe["last"], refs.neutral["last"]]) - mean)
    return lambda states: _near(states["last"] - mean, unsafe) - _near(states["last"] - mean, others)


def _indexes(side: Vectors) -> list[Any]:
    """An exact index of the unit vectors of each layer."""
    faiss = require("faiss", extra="cpu")
    indexes = [faiss.IndexFlatIP(side.shape[2]) for _ in range(side.shape[1])]
    for i, index in enumerate(indexes):
        index.add(np.ascontiguousarray(unit(side)[:, i]))
    return indexes


def _near(rows: Vectors, indexes: list[Any]) -> Vectors:
    """Mean cosine of rows to their nearest of each layer, shape (n, layers)."""
    rows = unit(rows)
    found = [
        index.search(np.ascontiguousarray(rows[:, i]), min(NEIGHBORS, index.ntotal))[0]
        for i, index in enumerate(indexes)
    ]
    return np.stack([cosines.mean(axis=1) for cosines in found], axis=1)
