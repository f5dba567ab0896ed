"""Where a review stands: what people decided, and how all rows of the selection rank after that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from larf_curate.scoring.selection import Selection

LEARNED_FROM = (ROW_ID, "larf_score", "larf_signals", "larf_state")


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """A queue and its selection at one moment.

    Args:
        store: The queue.
        records: Its records as the server gave them.
        reviewed: The same with their judgements.
        selection: The selection that was pushed.
        decided: What people decided, each about the row as it is, by row id.
        learned: How flagged and then kept rows rank after these decisions.
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
    ) -> "Standing":
        """Learn from the decisions about the selection's rows.

        Args:
            store: The queue.
            records: Its records.
            reviewed: The same with their judgements.
            selection: The selection that was pushed.
            decisions: What people decided.
            references: Those of the profile that scored the rows.

        Raises:
            InputError: If the rows have no states.
        """
        told = {row.row_id for row in decisions.rows if row.status == "decided"}
        decided: dict[str, Decision] = {}
        for part in (selection.flagged, selection.kept):
            places = [index for index, row in enumerate(part.with_format(None)[ROW_ID][:]) if row in told]
            known = decisions.for_rows(undecoded(part.select(places))).rows
            decided |= {row.row_id: row for row in known if row.status == "decided"}
        learned = learn(
            _both(selection), {row: of.decision or "" for row, of in decided.items()}, references=references
        )
        return cls(
            store=store, records=records, reviewed=reviewed, selection=selection, decided=decided, learned=learned
        )

    @cached_property
    def row_ids(self) -> list[str]:
        """By place in the ranking: flagged and then kept rows."""
        return self._column(ROW_ID)

    @cached_property
    def machine_scores(self) -> list[float | None]:
        """``larf_score`` by place."""
        return self._column("larf_score")

    @cached_property
    def places(self) -> dict[str, int]:
        """Place in the ranking by row id."""
        return {row: place for place, row in enumerate(self.row_ids)}

    @property
    def queued_unflagged(self) -> list[str]:
        """Row ids of kept rows that are in the queue: added to it when the selection was ranked anew earlier."""
        start = len(self.selection.flagged)
        return [record["external_id"] for record in self.records if self.places.get(record["external_id"], -1) >= start]

    @property
    def outside(self) -> list[int]:
        """Places of the rows that are neither flagged nor in the queue and have a score, highest learned one first."""
        start = len(self.selection.flagged)
        scores = self.learned.scores[start:]
        ranked = np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[: int(np.isfinite(scores).sum())]
        queued = {record["external_id"] for record in self.records}
        return [int(start + place) for place in ranked if self.row_ids[start + place] not in queued]

    def _column(self, name: str) -> list[Any]:
        parts = (self.selection.flagged, self.selection.kept)
        return [value for part in parts for value in part.with_format(None)[name][:]]


def _both(selection: Selection) -> Dataset:
    """What learning needs of flagged and then kept rows."""
    parts = [part for part in (selection.flagged, selection.kept) if len(part)]
    if not parts:
        raise InputError("the selection has no rows: there is nothing to rank")
    return concatenate_datasets(
        [part.select_columns([name for name in LEARNED_FROM if name in part.column_names]) for part in parts]
    )
