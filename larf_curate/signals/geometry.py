"""Vector arithmetic that the signals share; rows are of shape (n, layers, d), scores of shape (n, layers)."""

import numpy as np

from larf_curate.signals.protocol import Vectors


def unit(vectors: Vectors) -> Vectors:
    """Scale the last axis to length 1; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def dot(rows: Vectors, directions: Vectors) -> Vectors:
    """Dot product of every row with one direction a layer, shape (layers, d)."""
    return np.asarray(np.einsum("nld,ld->nl", rows, directions), np.float32)


def mean_unit(vectors: Vectors) -> Vectors:
    """Mean of the unit rows: its dot with a unit vector is that vector's mean cosine to the rows."""
    return np.asarray(unit(vectors).mean(axis=0))
