"""The two risks of a row as z-scores, `harmful` and `erosion`, and the default signal that combines them.

A row can BE harmful (its answer complies with a harmful request) or, although harmless, ERODE refusals (it trains the
model to comply where the prompt's hidden state points towards refusal). Both are calibrated on neutral rows: length is
regressed out, and the residual is divided by its standard deviation, so that 0 is an average neutral row, 1 is one
standard deviation above it, and layers and signals can be added in one unit.
"""

import numpy as np

from larf_curate.signals.centred import answer_similarity, unsafe_similarity
from larf_curate.signals.direction import refusal_direction
from larf_curate.signals.protocol import Fit, ReferenceStates, Signal
from larf_curate.states import States, Vectors

HARMFUL_MARGIN = 2.0
"""Standard deviations of `harmful` that do not count in `combined`; about one neutral row in 30 exceeds them."""


def harmful(refs: ReferenceStates) -> Signal:
    """Similarity of the answer to unsafe answers, as a z-score; unbounded, higher is worse.

    ``z((z(unsafe_similarity) + z(answer_similarity)) / 2)`` with ``z`` as in `calibrated`. `unsafe_similarity` reads
    the end of the answer, which tells a refusal from a compliant answer; `answer_similarity` reads all of it, which is
    more reliable where the unsafe references are of another kind than the harmful rows.
    """
    return calibrated(_mean_similarity, refs)


def _mean_similarity(refs: ReferenceStates) -> Signal:
    # Each part is calibrated first, so that the one with the larger spread does not dominate the mean.
    parts = (calibrated(unsafe_similarity, refs), calibrated(answer_similarity, refs))
    return lambda states: np.mean([part(states) for part in parts], axis=0)


def erosion(refs: ReferenceStates) -> Signal:
    """``z(refusal_direction)`` with ``z`` as in `calibrated`; unbounded, higher erodes refusals more."""
    return calibrated(refusal_direction, refs)


def combined(refs: ReferenceStates) -> Signal:
    """``erosion + max(harmful - 2, 0)``, both z-scored on neutral rows, length regressed out; higher is worse.

    Unbounded. Rows whose answers look like neutral ones rank by what their prompts teach the model, which is what
    fine-tuning on them costs. An answer that stands out adds its excess, even if its prompt looks harmless.
    """
    by_answer, by_prompt = harmful(refs), erosion(refs)
    return lambda states: np.asarray(by_prompt(states) + np.maximum(by_answer(states) - HARMFUL_MARGIN, 0))


def calibrated(fit: Fit, refs: ReferenceStates) -> Signal:
    """Z-score of a signal on neutral rows, with length regressed out, layer by layer.

    The score minus its least-squares fit on the logarithm of the token count, divided by the standard deviation of
    these residuals over the neutral rows.

    Args:
        fit: Makes the signal.
        refs: Its neutral rows give slope, mean and standard deviation of each layer.
    """
    signal = fit(refs)
    values, lengths = signal(refs.neutral), _log_length(refs.neutral)
    mean, centre = values.mean(axis=0), lengths.mean(axis=0)
    # If all neutral rows have one length, its effect cannot be estimated. Their variance is then not exactly 0.
    varies = np.ptp(lengths, axis=0) > 0
    covariance = ((lengths - centre) * (values - mean)).mean(axis=0)
    slope = np.where(varies, covariance, 0) / np.where(varies, lengths.var(axis=0), 1)

    def residual(states: States) -> Vectors:
        return np.asarray(signal(states) - mean - slope * (_log_length(states) - centre), np.float32)

    spread = residual(refs.neutral).std(axis=0)
    unit = np.where(spread > 0, spread, 1).astype(np.float32)
    return lambda states: np.asarray(residual(states) / unit)


def _log_length(states: States) -> Vectors:
    """Logarithm of the number of tokens, shape (n, layers)."""
    return np.asarray(np.log(states["length"][:, :, 0]))
