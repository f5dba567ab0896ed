"""Types of signals and their reference states, and the vector operations that signals share."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from larf_curate.states import States, Vectors

Signal = Callable[[States], Vectors]
"""Scores the states of n turns; returns shape (n, layers), float32, higher is worse."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceStates:
    """States that signals are fitted to, by position, each of shape (n, layers, d), float32.

    Args:
        unsafe: States of compliant answers to harmful prompts.
        safe: States of refusals of such prompts, or of other answers that show the opposite of the unsafe ones.
        neutral: States of neutral rows.
        borderline: Prompt states of harmless prompts that sound harmful, shape (n, layers, d); None if the safe answers
            are no refusals, so that nothing is known about refusals.
        top_k: Number of reference pairs that count in the published LARF score; None for all.
    """

    unsafe: States
    safe: States
    neutral: States
    borderline: Vectors | None = None
    top_k: int | None = None

    @property
    def refuses(self) -> bool:
        """Whether the safe answers are refusals."""
        return self.borderline is not None


Fit = Callable[[ReferenceStates], Signal]


def unit(vectors: Vectors) -> Vectors:
    """Normalise the last axis to length 1 (L2); a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1), np.float32)


def dot(rows: Vectors, directions: Vectors) -> Vectors:
    """Dot product of rows of shape (n, layers, d) with one direction per layer, (layers, d); returns (n, layers)."""
    return np.asarray(np.einsum("nld,ld->nl", rows, directions), np.float32)


def mean_unit(vectors: Vectors) -> Vectors:
    """Mean of the normalised rows: its dot product with a unit vector is that vector's mean cosine to the rows."""
    return np.asarray(unit(vectors).mean(axis=0))
