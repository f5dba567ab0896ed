"""What a signal is: made from reference states once, then a pure function of rows' states."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from larf_curate.states import States, Vectors

Signal = Callable[[States], Vectors]
"""Scores the states of n turns; returns shape (n, layers), float32, high = bad."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceStates:
    """States that signals are made from, by position, each of shape (n, layers, d), float32.

    Args:
        unsafe: Of compliant answers to harmful prompts.
        safe: Of refusals of such prompts.
        neutral: Of ordinary rows.
        top_k: Reference pairs that count in the published LARF score; None for all.
    """

    unsafe: States
    safe: States
    neutral: States
    top_k: int | None = None


Fit = Callable[[ReferenceStates], Signal]


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
