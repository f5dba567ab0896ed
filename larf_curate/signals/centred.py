"""LARF's cosines after the mean of neutral rows is taken off, which most of every hidden state consists of.

Source: LARF's formula (https://arxiv.org/abs/2507.18631) on centred states. Without centring all cosines lie close to 1
and their differences follow a row's length more than its content.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.covariance import ledoit_wolf_shrinkage

from larf_curate.signals.protocol import ReferenceStates, Signal, dot, mean_unit, unit
from larf_curate.states import Vectors


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """Maps states so that neutral rows have mean zero and unit shrunk covariance, one map a layer.

    The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf, 2004). That of k rows in d > k
    dimensions is a ball of one variance and, along k axes, more: so the map costs k dot products, not d.

    Args:
        mean: Shape (layers, d).
        floor: Shape (layers,): standard deviation off the axes.
        axes: Shape (layers, k, d), orthonormal.
        spread: Shape (layers, k): standard deviation along each axis.
    """

    mean: Vectors
    floor: Vectors
    axes: Vectors
    spread: Vectors

    @classmethod
    def fit(cls, neutral: Vectors) -> "Whitening":
        """Fit to neutral rows of shape (k, layers, d)."""
        mean = neutral.mean(axis=0)
        layers = [_shrunk_axes(neutral[:, i] - mean[i]) for i in range(neutral.shape[1])]
        floor, axes, spread = (np.stack(values) for values in zip(*layers, strict=True))
        return cls(mean=mean, floor=floor, axes=axes, spread=spread)

    def __call__(self, states: Vectors) -> Vectors:
        """Whiten states of shape (n, layers, d)."""
        centred = states - self.mean
        along = np.einsum("nld,lkd->nlk", centred, self.axes, optimize=True)
        gain = 1 / self.spread - 1 / self.floor[:, None]
        extra = np.einsum("nlk,lkd->nld", along * gain, self.axes, optimize=True)
        return np.asarray(centred / self.floor[:, None] + extra, np.float32)


def _shrunk_axes(centred: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """(standard deviation off the axes, axes, standard deviation along them) of one layer's centred rows (k, d)."""
    count, width = centred.shape
    shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    variances = lengths**2 / count
    ball = shrinkage * variances.sum() / width
    return np.sqrt(ball), axes, np.sqrt((1 - shrinkage) * variances + ball)
