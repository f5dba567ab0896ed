"""LARF's cosines after the mean of neutral rows is taken off, which most of every hidden state consists of.

Source: LARF's formula (https://arxiv.org/abs/2507.18631) on centred states. Without centring all cosines lie close to 1
and their differences follow a row's length more than its content.
"""

from larf_curate.signals.geometry import dot, mean_unit, unit
from larf_curate.signals.protocol import ReferenceStates, Signal
from larf_curate.signals.whitening import Whitening


def unsafe_similarity(refs: ReferenceStates) -> Signal:
    """Mean cosine to the unsafe references, of states less the neutral mean; in [-1, 1], higher is unsafe."""
    mean = refs.neutral["last"].mean(axis=0)
    direction = mean_unit(refs.unsafe["last"] - mean)
    return lambda states: dot(unit(states["last"] - mean), direction)


def answer_similarity(refs: ReferenceStates) -> Signal:
    """`unsafe_similarity` of the mean state over the answer's tokens, which its last few words do not decide."""
    mean = refs.neutral["mean"].mean(axis=0)
    direction = mean_unit(refs.unsafe["mean"] - mean)
    return lambda states: dot(unit(states["mean"] - mean), direction)


def larf_centred(refs: ReferenceStates) -> Signal:
    """LARF's difference of mean cosines, of states less the neutral mean; in [-2, 2], higher is unsafe."""
    mean = refs.neutral["last"].mean(axis=0)
    direction = mean_unit(refs.unsafe["last"] - mean) - mean_unit(refs.safe["last"] - mean)
    return lambda states: dot(unit(states["last"] - mean), direction)


def larf_whitened(refs: ReferenceStates) -> Signal:
    """LARF's difference of mean cosines in the space where neutral rows are white; in [-2, 2], higher is unsafe."""
    white = Whitening.fit(refs.neutral["last"])
    direction = mean_unit(white(refs.unsafe["last"])) - mean_unit(white(refs.safe["last"]))
    return lambda states: dot(unit(white(states["last"])), direction)
