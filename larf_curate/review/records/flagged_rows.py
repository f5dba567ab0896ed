"""The rows of a push, read once when they enter the review."""

from collections.abc import Collection, Iterator
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
    """Flagged rows by column, as far as a push needs them all at once.

    Args:
        ids: ``larf_row_id`` of each of n rows, unique.
        scores: ``larf_score``, shape (n,), float64, NaN where there is none; high = unsafe.
        states: ``larf_state``, shape (n, d), float32; None if no row has one.
        rows: All other columns, media undecoded. States take long to read row by row, so they are left out.
    """

    ids: list[str]
    scores: NDArray[np.float64]
    states: Vectors | None
    rows: Dataset

    @classmethod
    def read(cls, flagged: Dataset) -> "FlaggedRows":
        """Read the flagged rows of a selection.

        Raises:
            InputError: If they have no unique ``larf_row_id``.
        """
        if ROW_ID not in flagged.column_names:
            raise InputError(
                f"the rows have no column {ROW_ID}: push what select gives (a selection, or its flagged rows)"
            )
        plain = flagged.with_format(None)
        ids = list(plain[ROW_ID][:])
        if len(set(ids)) < len(ids):
            raise InputError(f"{ROW_ID} is not unique: each row must be in a selection once")
        scores = np.array([np.nan if score is None else score for score in plain["larf_score"][:]], np.float64)
        return cls(ids=ids, scores=scores, states=states_of(flagged), rows=undecoded(stateless(flagged)))

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.ids)

    def without(self, ids: Collection[str]) -> "FlaggedRows":
        """The rows without some of them."""
        if not ids:
            return self
        kept = [index for index, row in enumerate(self.ids) if row not in ids]
        states = None if self.states is None else self.states[kept]
        return FlaggedRows(
            ids=[self.ids[index] for index in kept],
            scores=self.scores[kept],
            states=states,
            rows=self.rows.select(kept),
        )

    def digests(self, ids: Collection[str]) -> dict[str, str]:
        """Content digest of some rows by id."""
        indices = [index for index, row in enumerate(self.ids) if row in ids]
        rows = self.rows.select(indices)
        return {row[ROW_ID]: content_digest(row) for row in rows}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows one by one, without their states."""
        return iter(self.rows)
