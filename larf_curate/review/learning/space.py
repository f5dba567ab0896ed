"""The space in which rows are compared: unit states less a centre, in their main directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from larf_curate.errors import InputError
from larf_curate.review.learning.inputs import References, StoredRows
from larf_curate.signals.protocol import unit

DIRECTIONS = 64
SAMPLE = 2000
CHUNK = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Where rows are compared: unit states less a centre, in the main directions of a sample of them."""

    centre: NDArray[np.float32]
    basis: NDArray[np.float32]

    @classmethod
    def of(cls, rows: StoredRows, places: NDArray[np.intp], references: References | None) -> "Space":
        """Of a sample of the rows spread evenly, of all decided ones and of the references."""
        width = rows.states.shape[1]
        if references is not None and width and references.unsafe.shape[1] != width:
            raise InputError(
                f"wanted references of width {width}, as the rows' states, got {references.unsafe.shape[1]}: "
                "give the profile that scored the rows"
            )
        if not len(rows.states):
            return cls(centre=np.zeros(width, np.float32), basis=np.zeros((width, 0), np.float32))
        spread = np.linspace(0, len(rows.states) - 1, min(SAMPLE, len(rows.states))).astype(np.intp)
        decided = (np.cumsum(rows.has_state) - 1)[places[rows.has_state[places]]]
        sample = rows.states[np.union1d(spread, decided)].astype(np.float32)
        sides = () if references is None else (references.unsafe, references.safe, references.neutral)
        centre = (sample if references is None else references.neutral).mean(axis=0)
        known = unit(np.concatenate([sample, *sides]) - centre)
        most = min(DIRECTIONS, *known.shape)
        return cls(centre=centre, basis=randomized_svd(known, most, random_state=0)[2].T.astype(np.float32))

    def __call__(self, states: NDArray[Any]) -> NDArray[np.float32]:
        """Project states of shape (n, d); returns shape (n, k)."""
        found = np.empty((len(states), self.basis.shape[1]), np.float32)
        room = np.empty((CHUNK, states.shape[1]), np.float32)  # used again and again: new memory costs more than sums
        for start in range(0, len(states), CHUNK):
            part = room[: len(states) - start]
            np.copyto(part, states[start : start + CHUNK])
            part -= self.centre
            lengths = np.sqrt(np.einsum("nd,nd->n", part, part))[:, None]
            np.divide(part @ self.basis, np.where(lengths > 0, lengths, 1), out=found[start : start + CHUNK])
        return found


def farthest(directions: NDArray[np.float32], seen: Sequence[int], candidates: Sequence[int], n: int) -> list[int]:
    """Choose the rows that are most unlike all that was seen and unlike each other: greedy k-centre by cosine.

    Source: Gonzalez (1985), as used for active learning in https://arxiv.org/abs/1708.00489.

    Args:
        directions: Shape (n, k); see `Learned`.
        seen: Rows that were decided; without any the first candidate counts as chosen first.
        candidates: Rows to choose from.
        n: How many to choose.

    Returns:
        The chosen rows, most unlike first.
    """
    rows = np.asarray(candidates, np.intp)
    found = unit(directions[rows])
    nearest = np.full(len(rows), -np.inf, np.float32)
    for start in range(0, len(seen), CHUNK):
        known = unit(directions[np.asarray(seen[start : start + CHUNK], np.intp)])
        nearest = np.maximum(nearest, (found @ known.T).max(axis=1))
    chosen: list[int] = []
    while len(chosen) < min(n, len(rows)):
        place = int(nearest.argmin())
        chosen.append(int(rows[place]))
        nearest = np.maximum(nearest, found @ found[place])
        nearest[place] = np.inf
    return chosen
