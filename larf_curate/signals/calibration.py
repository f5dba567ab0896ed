"""Z-scores of signals on neutral rows, so that layers and signals can be added in one unit.

0 is an average neutral row, 1 is one standard deviation above it.
"""

import numpy as np

from larf_curate.signals.protocol import Fit, ReferenceStates, Signal
from larf_curate.states import States, Vectors


def standardised(fit: Fit, refs: ReferenceStates) -> Signal:
    """Z-score of a signal on neutral rows, layer by layer.

    Args:
        fit: Makes the signal.
        refs: Its neutral rows give mean and standard deviation of each layer.
    """
    signal = fit(refs)
    values = signal(refs.neutral)
    mean, spread = values.mean(axis=0), values.std(axis=0)
    unit = np.where(spread > 0, spread, 1)
    return lambda states: np.asarray((signal(states) - mean) / unit, np.float32)


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
