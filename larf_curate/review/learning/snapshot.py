"""Snapshot of a review: its decisions and the ranking learned from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from larf_curate.columns import ROW_ID
from larf_curate.data.tables import undecoded
from larf_curate.errors import InputError
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.decisions.merge import Decision
from larf_curate.review.decisions.outcome import Decisions
from larf_curate.review.decisions.responses import ReviewedRecord
from larf_curate.review.learning import Learned, References, learn
from larf_curate.review.learning.earlier import load_earlier
from larf_curate.review.learning.inputs import signal_names
from larf_curate.scoring.selection import Selection

LEARNING_COLUMNS = (ROW_ID, "larf_score", "larf_signals", "larf_state")


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A queue and its selection at one point in time.

    Rows are numbered as in the ranking: first the flagged rows of the selection, then the kept ones.

    Args:
        store: The review dataset.
        records: Its records, as returned by the server.
        reviewed: The same records with their judgements.
        selection: The selection that was pushed.
        decided: Decisions on the current content of rows, by row id.
        learned: The ranking learned from these decisions.
    """

    store: RecordStore
    records: Sequence[Mapping[str, Any]]
    reviewed: Sequence[ReviewedRecord]
    selection: Selection
    decided: Mapping[str, Decision]
    learned: Learned

    @classmethod
    def of(
        cls,
        store: RecordStore,
        records: Sequence[Mapping[str, Any]],
        reviewed: Sequence[ReviewedRecord],
        selection: Selection,
        decisions: Decisions,
        references: References | None,
        *,
        earlier: Sequence[str | Path] = (),
        profile: str | None = None,
    ) -> "Snapshot":
        """Learn a ranking from the decisions on the selection's rows.

        Args:
            store: The review dataset.
            records: Its records, as returned by the server.
            reviewed: The same records with their judgements.
            selection: The selection that was pushed.
            decisions: Merged decisions.
            references: References of the profile that scored the rows, if available.
            earlier: Folders of decisions on other datasets, which are learned from too; see `load_earlier`.
            profile: Digest of the profile that scored the rows, if known.

        Raises:
            InputError: If the rows have no states, or there are no rows, or a folder of decisions cannot be used.
            ProfileMismatchError: If another profile scored the rows of earlier decisions.
        """
        decided_ids = {row.row_id for row in decisions.rows if row.status == "decided"}
        decided: dict[str, Decision] = {}
        for part in (selection.flagged, selection.kept):
            indices = [index for index, row in enumerate(part.with_format(None)[ROW_ID][:]) if row in decided_ids]
            # Compared with the rows' content: decisions on an earlier version of a row become stale here.
            current = decisions.for_rows(undecoded(part.select(indices))).rows
            decided |= {row.row_id: row for row in current if row.status == "decided"}
        labels = {row_id: decision.decision or "" for row_id, decision in decided.items()}
        rows = learning_rows(selection)
        known = rows.with_format(None)[ROW_ID][:] if earlier else ()
        others = load_earlier(earlier, profile=profile, signals=signal_names(rows), known=known)
        learned = learn(rows, labels, references=references, earlier=others)
        return cls(
            store=store, records=records, reviewed=reviewed, selection=selection, decided=decided, learned=learned
        )

    @cached_property
    def row_ids(self) -> list[str]:
        """Row ids, by row number."""
        return self._column(ROW_ID)

    @cached_property
    def machine_scores(self) -> list[float | None]:
        """``larf_score``, by row number."""
        return self._column("larf_score")

    @cached_property
    def indices(self) -> dict[str, int]:
        """Row numbers by row id."""
        return {row: index for index, row in enumerate(self.row_ids)}

    @property
    def queued_unflagged(self) -> list[str]:
        """Row ids of kept rows that are in the queue, because an earlier re-ranking added them."""
        start = len(self.selection.flagged)
        queued = [record["external_id"] for record in self.records]
        return [row for row in queued if self.indices.get(row, -1) >= start]

    @property
    def unqueued(self) -> list[int]:
        """Numbers of the scored rows that are neither flagged nor in the queue, highest learned score first."""
        start = len(self.selection.flagged)
        scores = self.learned.scores[start:]
        ranked = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[: int(np.isfinite(scores).sum())]
        queued = {record["external_id"] for record in self.records}
        return [int(start + index) for index in ranked if self.row_ids[start + index] not in queued]

    def _column(self, name: str) -> list[Any]:
        parts = (self.selection.flagged, self.selection.kept)
        return [value for part in parts for value in part.with_format(None)[name][:]]


def learning_rows(selection: Selection) -> Dataset:
    """Flagged and then kept rows, with the columns that learning needs.

    Args:
        selection: The selection.

    Raises:
        InputError: If it has no rows.
    """
    parts = [part for part in (selection.flagged, selection.kept) if len(part)]
    if not parts:
        raise InputError("the selection has no rows: there is nothing to rank")
    return concatenate_datasets(
        [part.select_columns([name for name in LEARNING_COLUMNS if name in part.column_names]) for part in parts]
    )
