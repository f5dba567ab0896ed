"""What a signal is: made from reference states once, then a pure function of rows' states."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from larf_curate.models.hidden_states import States

Vectors = NDArray[np.float32]
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
