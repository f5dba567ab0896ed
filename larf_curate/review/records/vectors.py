"""Dimensionality reduction of hidden states for *find similar*; near rows stay near. Centring for near-duplicates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.errors import ProfileMismatchError
from larf_curate.profile.cache import profile_of
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.states import Vectors

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile

DIMENSIONS = 128
"""More would slow the server down, which stores vectors as JSON text."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reduction:
    """Affine dimensionality reduction: subtract a mean, then project onto directions of large variance.

    All states of a model share a large common part that hides which rows are near to each other; the mean over a
    profile's rows estimates it.

    Args:
        name: Name of the reduction; only vectors from reductions of the same name can be compared.
        mean: Mean state, shape (d,), float32; zero if unknown.
        directions: Shape (d, k), float32, k <= d.
    """

    name: str
    mean: Vectors
    directions: Vectors

    @classmethod
    def of_profile(cls, profile: "SafetyProfile") -> "Reduction":
        """Principal components of a profile's reference and neutral states (last token) at its first layer."""
        states = np.concatenate([by["last"][:, 0] for by in profile.states.values() if "last" in by])
        return cls.fit(states, name=profile.digest[:12])

    @classmethod
    def random(cls, width: int) -> "Reduction":
        """Random projection, the same on every machine, for states whose profile is not available.

        By the lemma of Johnson and Lindenstrauss (1984), the ratios of distances are preserved within about
        ``1 / sqrt(DIMENSIONS)``.

        Args:
            width: Width d of the states.
        """
        return cls.fit(np.zeros((0, width), np.float32), name="random")

    @classmethod
    def fit(cls, states: Vectors, *, name: str, dimensions: int = DIMENSIONS) -> "Reduction":
        """Principal components of some states; if there are too few, random directions are added.

        Args:
            states: Shape (n, d), n >= 0.
            name: Name of the reduction.
            dimensions: Number of directions, limited to d.
        """
        exact = states.astype(np.float64)
        width, count = exact.shape[1], min(dimensions, exact.shape[1])
        mean = exact.mean(axis=0) if len(exact) else np.zeros(width)
        _, sizes, components = np.linalg.svd(exact - mean, full_matrices=False)
        main = _fix_signs(components[sizes > 1e-6 * sizes.max(initial=1e-30)][:count].T)
        rest = _random_complement(main, count - main.shape[1])
        return cls(name=name, mean=mean.astype(np.float32), directions=np.hstack([main, rest]).astype(np.float32))

    @property
    def width(self) -> int:
        """Width d of the states."""
        return len(self.mean)

    @property
    def dimensions(self) -> int:
        """Number of dimensions k of the reduced vectors."""
        return int(self.directions.shape[1])

    @property
    def is_centred(self) -> bool:
        """Whether a mean is subtracted: true for the reduction of a profile, false for a random one."""
        return bool(self.mean.any())

    def __call__(self, states: Vectors) -> Vectors:
        """Reduce states of shape (n, d) to unit vectors of shape (n, k), float32; non-finite states give zeros."""
        return unit_rows(self.centred(states) @ self.directions)

    def centred(self, states: Vectors) -> Vectors:
        """Subtract the mean and normalise, without projection; shape (n, d), float32; non-finite states give zeros."""
        return unit_rows(np.asarray(states, np.float32) - self.mean)


def reduction_for(
    states: Vectors | None, scored: Mapping[str, Any], profile: "SafetyProfile | None" = None
) -> Reduction | None:
    """The reduction for a selection's states: that of its profile, or a random one if the profile is not available.

    Args:
        states: Shape (n, d); None if the rows have no states.
        scored: Manifest of the scored dataset.
        profile: The profile that scored the rows; default: looked up in this machine's cache.

    Returns:
        None without states.

    Raises:
        ProfileMismatchError: If the given profile did not score the rows, or its states have another width.
    """
    available = profile_of(scored, profile)  # before anything else: a wrong profile is an error even without states
    if states is None:
        return None
    width = states.shape[1]
    if available is not None and available.width == width:
        return Reduction.of_profile(available)
    if profile is not None:
        raise ProfileMismatchError(f"wanted a profile of a model of width {width}, got one of width {profile.width}")
    return Reduction.random(width)


def vectors_of(rows: FlaggedRows, reduction: Reduction | None) -> dict[str, Vectors]:
    """Reduced states by row id, each of shape (k,), float32; empty without states or reduction.

    Args:
        rows: Flagged rows with states of width d.
        reduction: Reduction of states of width d.
    """
    if rows.states is None or reduction is None:
        return {}
    return dict(zip(rows.ids, reduction(rows.states), strict=True))


def unit_rows(vectors: NDArray[np.floating[Any]]) -> Vectors:
    """Normalise each row to length 1; zero and non-finite rows become zero."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    usable = np.isfinite(norms) & (norms > 0)
    units = np.where(usable, vectors, 0) / np.where(usable, norms, 1)
    return np.asarray(units, np.float32)


def _fix_signs(columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Make the entry of largest magnitude in each column positive, since a decomposition leaves the sign open."""
    if not columns.size:
        return columns
    largest = columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])]
    signed: NDArray[np.float64] = columns * np.sign(largest)
    return signed


def _random_complement(main: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Random directions orthogonal to given ones and to each other, scaled to preserve lengths in expectation.

    Args:
        main: Orthonormal columns, shape (d, m).
        count: Number of directions, at most d - m.

    Returns:
        Shape (d, count).
    """
    width, given = main.shape
    if count == 0:
        return np.zeros((width, 0))
    drawn = np.random.default_rng(0).standard_normal((width, count))
    drawn -= main @ (main.T @ drawn)
    directions, _ = np.linalg.qr(drawn)
    # Projected again: rounding of the first projection leaves small components along the given directions.
    directions -= main @ (main.T @ directions)
    scaled: NDArray[np.float64] = directions * np.sqrt((width - given) / count)
    return scaled
