"""The two axes of a row's danger, on one scale, and the default that joins them.

A row can BE harmful (its answer complies with a harmful request) or, though harmless, ERODE refusals (it trains the
model to comply where its hidden state says refuse). Both axes are standardised by the neutral rows: 0 is an ordinary
row, 1 is one standard deviation above it, so that layers and axes add up in one unit.
"""

import numpy as np

from larf_curate.signals.centred import unsafe_similarity
from larf_curate.signals.direction import refusal_direction
from larf_curate.signals.protocol import Fit, ReferenceStates, Signal


def harmful(refs: ReferenceStates) -> Signal:
    """`unsafe_similarity` in standard deviations of the neutral rows; unbounded, higher is more harmful."""
    return standardised(unsafe_similarity, refs)


def erosion(refs: ReferenceStates) -> Signal:
    """`refusal_direction` in standard deviations of the neutral rows; unbounded, higher erodes refusals more."""
    return standardised(refusal_direction, refs)


def combined(refs: ReferenceStates) -> Signal:
    """Mean of `harmful` and `erosion`; unbounded, higher is worse."""
    axes = (harmful(refs), erosion(refs))
    return lambda states: np.mean([axis(states) for axis in axes], axis=0)


def standardised(fit: Fit, refs: ReferenceStates) -> Signal:
    """A signal less its mean over the neutral rows, in units of their standard deviation, at every layer."""
    signal = fit(refs)
    neutral = signal(refs.neutral)
    mean, spread = neutral.mean(axis=0), neutral.std(axis=0)
    return lambda states: (signal(states) - mean) / np.where(spread > 0, spread, 1)
