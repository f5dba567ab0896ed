"""LARF's cosines on centred states: the mean state of neutral rows is subtracted first.

Source: LARF's formula (https://arxiv.org/abs/2507.18631) on centred states. The neutral mean makes up most of every
hidden state; without centring all cosines are close to 1, and their differences follow a row's length more than its
content.
"""

from dataclasses import dataclass

import numpy as np

from larf_curate.signals.protocol import ReferenceStates, Signal, dot, mean_unit, unit
from larf_curate.states import Vectors


def unsafe_similarity(refs: ReferenceStates) -> Signal:
    """Mean cosine of the centred last state to the centred unsafe references; in [-1, 1], higher is unsafe.

    ``mean_i cos(x - m, u_i - m)`` with m the mean last state of neutral rows.
    """
    mean = refs.neutral["last"].mean(axis=0)
    direction = mean_unit(refs.unsafe["last"] - mean)
    return lambda states: dot(unit(states["last"] - mean), direction)


def answer_similarity(refs: ReferenceStates) -> Signal:
    """`unsafe_similarity` of the mean state over the answer's tokens; in [-1, 1], higher is unsafe.

    The mean over all tokens does not depend on the last few words alone, as the last state does.
    """
    mean = refs.neutral["mean"].mean(axis=0)
    direction = mean_unit(refs.unsafe["mean"] - mean)
    return lambda states: dot(unit(states["mean"] - mean), direction)


def larf_centred(refs: ReferenceStates) -> Signal:
    """LARF's difference of mean cosines on centred states; in [-2, 2], higher is unsafe.

    ``mean_i cos(x - m, u_i - m) - mean_i cos(x - m, s_i - m)`` with m the mean last state of neutral rows.
    """
    mean = refs.neutral["last"].mean(axis=0)
    direction = mean_unit(refs.unsafe["last"] - mean) - mean_unit(refs.safe["last"] - mean)
    return lambda states: dot(unit(states["last"] - mean), direction)


def larf_whitened(refs: ReferenceStates) -> Signal:
    """LARF's difference of mean cosines on states whitened by neutral rows; in [-2, 2], higher is unsafe.

    ``mean_i cos(Wx, Wu_i) - mean_i cos(Wx, Ws_i)`` with W the map of `Whitening`.
    """
    whiten = Whitening.fit(refs.neutral["last"])
    direction = mean_unit(whiten(refs.unsafe["last"])) - mean_unit(whiten(refs.safe["last"]))
    return lambda states: dot(unit(whiten(states["last"])), direction)


@dataclass(frozen=True, kw_only=True, eq=False)
class Whitening:
    """Whitening transform of each layer: neutral rows get mean zero and identity (shrunk) covariance.

    The covariance is shrunk towards a multiple of the identity (Ledoit and Wolf, 2004,
    https://doi.org/10.1016/S0047-259X(03)00096-4). Estimated from k rows in d > k dimensions it is isotropic except
    along k axes, so that whitening costs k dot products per state instead of d.

    Args:
        mean: Mean of the neutral rows, shape (layers, d).
        floor: Standard deviation in all directions orthogonal to the axes, shape (layers,).
        axes: Orthonormal principal axes, shape (layers, k, d).
        spread: Standard deviation along each axis, shape (layers, k).
    """

    mean: Vectors
    floor: Vectors
    axes: Vectors
    spread: Vectors

    @classmethod
    def fit(cls, neutral: Vectors) -> "Whitening":
        """Estimate the transform from neutral rows of shape (k, layers, d)."""
        mean = neutral.mean(axis=0)
        layers = [_shrunk_axes(neutral[:, i] - mean[i]) for i in range(neutral.shape[1])]
        floor, axes, spread = (np.stack(values) for values in zip(*layers, strict=True))
        return cls(mean=mean, floor=floor, axes=axes, spread=spread)

    def __call__(self, states: Vectors) -> Vectors:
        """Whiten states of shape (n, layers, d); the shape stays."""
        centred = states - self.mean
        # Everything is divided by the floor, and the components along the axes are then corrected to their own spread.
        along = np.einsum("nld,lkd->nlk", centred, self.axes, optimize=True)
        gain = 1 / self.spread - 1 / self.floor[:, None]
        extra = np.einsum("nlk,lkd->nld", along * gain, self.axes, optimize=True)
        return np.asarray(centred / self.floor[:, None] + extra, np.float32)


def _shrunk_axes(centred: Vectors) -> tuple[Vectors, Vectors, Vectors]:
    """Shrunk covariance of one layer's centred rows of shape (k, d), in terms of its principal axes.

    Returns:
        The standard deviation orthogonal to the axes, the axes, and the standard deviation along each.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # takes a second, which not all commands need

    count, width = centred.shape
    shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    _, lengths, axes = np.linalg.svd(centred, full_matrices=False)
    variances = lengths**2 / count
    isotropic = shrinkage * variances.sum() / width
    return np.sqrt(isotropic), axes, np.sqrt((1 - shrinkage) * variances + isotropic)
