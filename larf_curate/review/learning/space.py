"""The space in which rows are compared: centred and normalised states, projected onto their main directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.errors import InputError
from larf_curate.review.learning.inputs import References, StoredRows
from larf_curate.signals.protocol import unit

DIRECTIONS = 64
SAMPLE_ROWS = 2000
"""Number of rows from which the directions are computed, besides decided rows and references."""
CHUNK_ROWS = 2048
"""Number of rows that are projected or compared at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Projection of centred unit states onto the main directions of a sample of rows.

    Args:
        centre: Shape (d,): the mean of the neutral references, or of the sample without references.
        basis: Orthonormal columns, shape (d, k).
    """

    centre: NDArray[np.float32]
    basis: NDArray[np.float32]

    @classmethod
    def of(cls, rows: StoredRows, decided: NDArray[np.intp], references: References | None) -> "Space":
        """Fit the space to an evenly spaced sample of the rows, all decided rows and the references.

        Args:
            rows: The rows.
            decided: Indices of the decided rows.
            references: References of the profile that scored the rows, if available.

        Raises:
            InputError: If the references have another width than the states.
        """
        width = rows.states.shape[1]
        if references is not None and width and references.unsafe.shape[1] != width:
            raise InputError(
                f"wanted references of width {width}, that of the rows' states, got {references.unsafe.shape[1]}: "
                "give the profile that scored the rows"
            )
        if not len(rows.states):
            return cls(centre=np.zeros(width, np.float32), basis=np.zeros((width, 0), np.float32))
        evenly = np.linspace(0, len(rows.states) - 1, min(SAMPLE_ROWS, len(rows.states))).astype(np.intp)
        state_index = np.cumsum(rows.has_state) - 1  # row index to index among the states
        decided_states = state_index[decided[rows.has_state[decided]]]
        sample = rows.states[np.union1d(evenly, decided_states)].astype(np.float32)
        sides = () if references is None else (references.unsafe, references.safe, references.neutral)
        centre = (sample if references is None else references.neutral).mean(axis=0)
        units = unit(np.concatenate([sample, *sides]) - centre)
        directions = min(DIRECTIONS, *units.shape)
        from sklearn.utils.extmath import randomized_svd  # takes a second

        return cls(centre=centre, basis=randomized_svd(units, directions, random_state=0)[2].T.astype(np.float32))

    def __call__(self, states: NDArray[Any]) -> NDArray[np.float32]:
        """Centre, normalise and project states of shape (n, d); returns shape (n, k), float32."""
        projected = np.empty((len(states), self.basis.shape[1]), np.float32)
        buffer = np.empty((CHUNK_ROWS, states.shape[1]), np.float32)  # reused: allocation would take most of the time
        for start in range(0, len(states), CHUNK_ROWS):
            chunk = buffer[: len(states) - start]
            np.copyto(chunk, states[start : start + CHUNK_ROWS])
            chunk -= self.centre
            norms = np.sqrt(np.einsum("nd,nd->n", chunk, chunk))[:, None]
            # Normalised after the projection, which has fewer columns; the result is the same.
            np.divide(chunk @ self.basis, np.where(norms > 0, norms, 1), out=projected[start : start + CHUNK_ROWS])
        return projected


def farthest(directions: NDArray[np.float32], seen: Sequence[int], candidates: Sequence[int], n: int) -> list[int]:
    """Choose the rows that are least similar to all rows seen and to each other: greedy k-centre by cosine.

    Source: Gonzalez (1985), as used for active learning in https://arxiv.org/abs/1708.00489.

    Args:
        directions: Projected states of all rows, shape (rows, k); see `Learned`.
        seen: Indices of the decided rows; if empty, the first candidate is chosen first.
        candidates: Indices of the rows to choose from.
        n: Number of rows to choose; all candidates if there are fewer.

    Returns:
        Indices of the chosen rows, least similar first.
    """
    rows = np.asarray(candidates, np.intp)
    units = unit(directions[rows])
    nearest = np.full(len(rows), -np.inf, np.float32)  # highest cosine to a row that was seen or chosen
    for start in range(0, len(seen), CHUNK_ROWS):
        seen_units = unit(directions[np.asarray(seen[start : start + CHUNK_ROWS], np.intp)])
        nearest = np.maximum(nearest, (units @ seen_units.T).max(axis=1))
    chosen: list[int] = []
    while len(chosen) < min(n, len(rows)):
        best = int(nearest.argmin())
        chosen.append(int(rows[best]))
        nearest = np.maximum(nearest, units @ units[best])
        nearest[best] = np.inf  # not chosen again
    return chosen
