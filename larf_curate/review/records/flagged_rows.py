"""The flagged rows of a push, read once."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.columns import ROW_ID, content_digest, stateless, states_of
from larf_curate.data.tables import undecoded
from larf_curate.errors import InputError
from larf_curate.states import Vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class FlaggedRows:
    """Flagged rows; iterates over them as dicts, without their states.

    Ids, scores and states are read by column: reading states row by row takes long.

    Args:
        ids: ``larf_row_id`` of each of n rows, unique.
        scores: ``larf_score``, shape (n,), float64; NaN for rows without a score, higher is unsafe.
        states: ``larf_state``, shape (n, d), float32; None if no row has one.
        rows: All columns but ``larf_state``, media undecoded.
    """

    ids: list[str]
    scores: NDArray[np.float64]
    states: Vectors | None
    rows: Dataset

    @classmethod
    def read(cls, flagged: Dataset) -> "FlaggedRows":
        """Read the flagged rows of a selection.

        Args:
            flagged: Rows with ``larf_row_id`` and ``larf_score``.

        Raises:
            InputError: If ``larf_row_id`` is missing or not unique.
        """
        if ROW_ID not in flagged.column_names:
            raise InputError(
                f"the rows have no column {ROW_ID}: push a selection, or its flagged rows, as select returns them"
            )
        plain = flagged.with_format(None)
        ids = list(plain[ROW_ID][:])
        if len(set(ids)) < len(ids):
            raise InputError(f"{ROW_ID} is not unique: remove the duplicate rows")
        scores = np.array([np.nan if score is None else score for score in plain["larf_score"][:]], np.float64)
        return cls(ids=ids, scores=scores, states=states_of(flagged), rows=undecoded(stateless(flagged)))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def first(self, ids: Sequence[str]) -> "FlaggedRows":
        """All rows, those with these ids first and in this order."""
        places = {row: place for place, row in enumerate(ids)}
        order = sorted(range(len(self)), key=lambda index: places.get(self.ids[index], len(places)))
        return self._at(order)

    def without(self, ids: Collection[str]) -> "FlaggedRows":
        """All rows except those with these ids."""
        if not ids:
            return self
        return self._at([index for index, row in enumerate(self.ids) if row not in ids])

    def _at(self, indices: list[int]) -> "FlaggedRows":
        return FlaggedRows(
            ids=[self.ids[index] for index in indices],
            scores=self.scores[indices],
            states=None if self.states is None else self.states[indices],
            rows=self.rows.select(indices),
        )

    def digests(self, ids: Collection[str]) -> dict[str, str]:
        """Content digests of the rows with these ids, by id."""
        indices = [index for index, row in enumerate(self.ids) if row in ids]
        rows = self.rows.select(indices)
        return {row[ROW_ID]: content_digest(row) for row in rows}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Iterate over the rows as dicts, without their states."""
        return iter(self.rows)
