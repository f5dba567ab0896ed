"""Hidden states in few dimensions, in which rows that were near stay near: for *find similar* and near duplicates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.errors import ProfileMismatchError
from larf_curate.profile import SafetyProfile
from larf_curate.profile.cache import profile_of
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.states import Vectors

DIMENSIONS = 128
"""Vectors are stored on the server as JSON text: more would make it slow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduction:
    """A linear map of states: their mean taken off, then the directions in which a profile's own rows differ most.

    All states of a model share a large common part, which hides who is near; the mean of the profile's rows is it.

    Args:
        name: Vectors can be compared with each other only when they come from reductions of the same name.
        mean: Shape (d,).
        directions: Shape (d, k), k <= d.
    """

    name: str
    mean: Vectors
    directions: Vectors

    @classmethod
    def of_profile(cls, profile: SafetyProfile) -> "Reduction":
        """The principal directions of a profile's reference and neutral states at its first layer."""
        states = np.concatenate([by["last"][:, 0] for by in profile.states.values()])
        return cls.fit(states, name=profile.digest[:12])

    @classmethod
    def random(cls, width: int) -> "Reduction":
        """Random directions, the same on every machine, for states whose profile is not at hand.

        Johnson and Lindenstrauss: distances keep their ratio within about ``1 / sqrt(dimensions)``.
        """
        return cls.fit(np.zeros((0, width), np.float32), name="random")

    @classmethod
    def fit(cls, states: Vectors, *, name: str, dimensions: int = DIMENSIONS) -> "Reduction":
        """Principal directions of some states; where they have fewer than asked for, random ones fill up.

        Args:
            states: Shape (n, d), n >= 0.
            name: What to call the reduction.
            dimensions: How many directions; at most d are taken.
        """
        exact = states.astype(np.float64)
        width, wanted = exact.shape[1], min(dimensions, exact.shape[1])
        mean = exact.mean(axis=0) if len(exact) else np.zeros(width)
        _, sizes, rows = np.linalg.svd(exact - mean, full_matrices=False)
        main = _signed(rows[sizes > 1e-6 * sizes.max(initial=1e-30)][:wanted].T)
        rest = _outside(main, wanted - main.shape[1])
        return cls(name=name, mean=mean.astype(np.float32), directions=np.hstack([main, rest]).astype(np.float32))

    @property
    def width(self) -> int:
        """Width d of the states that it takes."""
        return len(self.mean)

    @property
    def dimensions(self) -> int:
        """Number k of dimensions that it gives."""
        return int(self.directions.shape[1])

    @property
    def is_of_profile(self) -> bool:
        """Whether it knows the common part of the model's states, as only a profile's does."""
        return bool(self.mean.any())

    def __call__(self, states: Vectors) -> Vectors:
        """Reduce states of shape (n, d) to unit vectors of shape (n, k); an unusable state gives a zero vector."""
        return unit_rows(self.centred(states) @ self.directions)

    def centred(self, states: Vectors) -> Vectors:
        """Unit vectors of shape (n, d), the mean taken off and nothing else lost; an unusable state gives zeros."""
        return unit_rows(np.asarray(states, np.float32) - self.mean)


def reduction_for(
    states: Vectors | None, scored: Mapping[str, Any], profile: SafetyProfile | None = None
) -> Reduction | None:
    """The reduction of a selection's states: its profile's; a random one without a profile; None without states.

    Args:
        states: Shape (n, d).
        scored: Manifest of the scored dataset.
        profile: The profile that scored the rows, if it is not kept on this machine.

    Raises:
        ProfileMismatchError: If the profile given is another.
    """
    known = profile_of(scored, profile)
    if states is None:
        return None
    width = states.shape[1]
    if known is not None and known.width == width:
        return Reduction.of_profile(known)
    if profile is not None:
        raise ProfileMismatchError(f"wanted a profile of a model of width {width}, got one of width {profile.width}")
    return Reduction.random(width)


def vectors_of(rows: FlaggedRows, reduction: Reduction | None) -> dict[str, Vectors]:
    """The reduced state of each row by its id, shape (k,); empty without states or without a reduction.

    Args:
        rows: Flagged rows with states of width d.
        reduction: A reduction of width d.
    """
    if rows.states is None or reduction is None:
        return {}
    return dict(zip(rows.ids, reduction(rows.states), strict=True))


def unit_rows(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """Scale each row to length 1; a row that is zero or not finite becomes zero."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    units = np.where(usable, vectors, 0) / np.where(usable, norms, 1)
    return np.asarray(units, np.float32)


def _signed(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns with the sign that makes their largest entry positive: the decomposition leaves it open."""
    if not columns.size:
        return columns
    largest = columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])]
    signed: NDArray[np.float64] = columns * np.sign(largest)
    return signed


def _outside(main: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Random directions at right angles to some and to each other, as long as to keep lengths on average."""
    width, taken = main.shape
    if count == 0:
        return np.zeros((width, 0))
    drawn = np.random.default_rng(0).standard_normal((width, count))
    drawn -= main @ (main.T @ drawn)
    directions, _ = np.linalg.qr(drawn)
    directions -= main @ (main.T @ directions)
    scaled: NDArray[np.float64] = directions * np.sqrt((width - taken) / count)
    return scaled
