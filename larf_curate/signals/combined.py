"""The two axes of a row's danger, on one scale, and the default that joins them.

A row can BE harmful (its answer complies with a harmful request) or, though harmless, ERODE refusals (it trains the
model to comply where its hidden state says refuse). Both axes are calibrated by neutral rows: what a row's length
predicts is taken off, 0 is an ordinary row and 1 is one standard deviation above it, so that layers and axes add up in
one unit.
"""

import numpy as np

from larf_curate.signals.centred import answer_similarity, unsafe_similarity
from larf_curate.signals.direction import refusal_direction
from larf_curate.signals.protocol import Fit, ReferenceStates, Signal
from larf_curate.states import States, Vectors

ORDINARY = 2.0
"""Standard deviations of `harmful` that the default signal takes for ordinary; one ordinary row in 30 has more."""


def harmful(refs: ReferenceStates) -> Signal:
    """Likeness of the answer to unsafe ones, in standard deviations of neutral rows of that length; higher is worse.

    It is the mean of `unsafe_similarity`, which reads the answer's end, and `answer_similarity`, which reads all of it:
    the end tells a refusal from a compliant answer, the whole is the surer where unsafe references are of another kind
    than the harmful rows.
    """
    return calibrated(_likeness, refs)


def _likeness(refs: ReferenceStates) -> Signal:
    parts = (calibrated(unsafe_similarity, refs), calibrated(answer_similarity, refs))
    return lambda states: np.mean([part(states) for part in parts], axis=0)


def erosion(refs: ReferenceStates) -> Signal:
    """`refusal_direction` in standard deviations of neutral rows of that length; unbounded, higher erodes more."""
    return calibrated(refusal_direction, refs)


def combined(refs: ReferenceStates) -> Signal:
    """`erosion`, and what `harmful` has above 2 standard deviations; unbounded, higher is worse.

    Rows whose answers are as ordinary ones rank by what they teach a model, which is what fine-tuning on them costs. An
    answer that stands out adds by how far it does, also where its prompt looks harmless.
    """
    by_answer, by_prompt = harmful(refs), erosion(refs)
    return lambda states: np.asarray(by_prompt(states) + np.maximum(by_answer(states) - ORDINARY, 0))


def calibrated(fit: Fit, refs: ReferenceStates) -> Signal:
    """A signal less what a line over the logarithm of the length predicts of it, in units of what neutral rows vary.

    Args:
        fit: Makes the signal.
        refs: Their neutral rows give line and unit, one a layer.
    """
    signal = fit(refs)
    values, lengths = signal(refs.neutral), _log_length(refs.neutral)
    mean, centre = values.mean(axis=0), lengths.mean(axis=0)
    variance = lengths.var(axis=0)
    slope = ((lengths - centre) * (values - mean)).mean(axis=0) / np.where(variance > 0, variance, 1)

    def residual(states: States) -> Vectors:
        return np.asarray(signal(states) - mean - slope * (_log_length(states) - centre), np.float32)

    spread = residual(refs.neutral).std(axis=0)
    unit = np.where(spread > 0, spread, 1).astype(np.float32)
    return lambda states: np.asarray(residual(states) / unit)


def _log_length(states: States) -> Vectors:
    """Logarithm of the number of tokens, shape (n, layers)."""
    return np.asarray(np.log(states["length"][:, :, 0]))
