"""The rest of a queue ranked anew by what people decided, in place."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets

from larf_curate.columns import ROW_ID
from larf_curate.data.tables import no_progress_bars
from larf_curate.review.argilla.settings import MACHINE_SCORE, MACHINE_SCORE_TITLE, SCORE
from larf_curate.review.learning import LEARNED, Learned
from larf_curate.review.learning.snapshot import Standing
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.selection import Selection

TYPES = {
    "larf_flagged": Value("bool"),
    "larf_reason": Value("string"),
    "category": Value("string"),
    LEARNED: Value("float32"),
}
LIKELY = 0.5
"""Chance of removal above which a row outside the queue is worth a look."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reranked:
    """What learning from people did.

    Args:
        learned: The ranking, of flagged and then kept rows as they were before.
        updated: Undecided records of the queue whose score changed on the server.
        added: Row ids that were not flagged before and now are in the queue.
        overlooked: How many rows outside the queue are more likely than not to be removed.
        selection: The selection with ``larf_learned_score``, flagged rows sorted by it, and with the added ones.
        removed: Rows that people removed, with their ``category`` if they named one.
        url: The queue in the browser, worst first.
    """

    learned: Learned
    updated: int
    added: tuple[str, ...]
    overlooked: int
    selection: Selection
    removed: Dataset
    url: str

    def summary(self) -> dict[str, Any]:
        """Counts, held-out figures and link, as JSON values."""
        counts = {"updated": self.updated, "added": list(self.added), "overlooked": self.overlooked}
        return {**self.learned.summary(), **counts, "url": self.url}

    def exemplars(self, index: ExemplarIndex) -> ExemplarIndex:
        """An index with the removed rows beside its own: the nearest known-bad rows of what is scored next.

        Args:
            index: Exemplars at the layer whose states scoring kept.
        """
        known = set(index.ids)
        rows = [row for row in self.removed if row[ROW_ID] not in known and row["larf_state"] is not None]
        return index.add(rows) if rows else index

    def save(self, folder: str | Path) -> None:
        """Write the selection, for ``review pull`` and ``report``."""
        self.selection.save(folder)


def update_scores(standing: Standing) -> int:
    """Give undecided records the learned score, by which the page sorts; the machine's stays beside it.

    Args:
        standing: The queue and its ranking.

    Returns:
        How many records changed.
    """
    changed = {}
    for record in standing.records:
        place = standing.places.get(record["external_id"])
        metadata = dict(record["metadata"] or {})
        if place is None or record["status"] == "completed" or SCORE not in metadata:
            continue
        score = float(standing.learned.scores[place])
        if np.isfinite(score) and score != np.float32(metadata[SCORE]):
            machine = metadata.get(MACHINE_SCORE, metadata[SCORE])
            changed[record["external_id"]] = metadata | {SCORE: score, MACHINE_SCORE: machine}
    if changed:
        standing.store.add_property(MACHINE_SCORE, MACHINE_SCORE_TITLE, "float")
        standing.store.update_metadata(changed)
    return len(changed)


def overlooked(standing: Standing, added: Collection[str] = ()) -> int:
    """How many rows outside the queue are more likely than not to be removed.

    Args:
        standing: The queue and its ranking.
        added: Row ids that have joined the queue since.
    """
    places = [place for place in standing.outside if standing.row_ids[place] not in added]
    return int((standing.learned.chances[places] > LIKELY).sum())


def flag_more(standing: Standing, row_ids: Sequence[str]) -> Selection:
    """A selection whose flagged part is these rows of the kept one, with their reason, and nothing else.

    Args:
        standing: The queue and its ranking.
        row_ids: The rows to flag.
    """
    start = len(standing.selection.flagged)
    places = [standing.places[row] for row in row_ids]
    decided = standing.learned.removed + standing.learned.kept
    reasons = [f"learned score {standing.learned.scores[place]:.4f} after {decided} decisions" for place in places]
    rows = standing.selection.kept.select([place - start for place in places])
    return replace(
        standing.selection, flagged=_with(rows, {"larf_flagged": [True] * len(rows), "larf_reason": reasons})
    )


def resorted(standing: Standing, moved: Dataset) -> Selection:
    """The selection with the column of learned scores, flagged rows sorted by it, unscored ones last.

    Args:
        standing: The selection and its ranking.
        moved: Kept rows that are flagged now, as `flag_more` made them.
    """
    selection, scores = standing.selection, standing.learned.scores
    start = len(selection.flagged)
    ids = moved.with_format(None)[ROW_ID][:]
    places = np.array([standing.places[row] for row in ids], np.intp)
    flagged = [_with(part, {LEARNED: scores[at]}) for part, at in ((selection.flagged, slice(start)), (moved, places))]
    joined = concatenate_datasets([part for part in flagged if len(part)] or flagged[:1])
    order = np.concatenate([scores[:start], scores[places]])
    kept = np.setdiff1d(np.arange(start, len(scores)), places)
    return replace(
        selection,
        flagged=joined.select(np.argsort(-np.nan_to_num(order, nan=-np.inf), kind="stable")),
        kept=_with(selection.kept.select(kept - start), {LEARNED: scores[kept]}),
    )


def removed_rows(standing: Standing) -> Dataset:
    """The rows that people removed, each with its hazard category as ``category``.

    Args:
        standing: The selection and what people decided.
    """
    known = {row: decision for row, decision in standing.decided.items() if decision.decision == "remove"}
    parts = []
    for part in (standing.selection.flagged, standing.selection.kept):
        ids = part.with_format(None)[ROW_ID][:]
        places = [place for place, row in enumerate(ids) if row in known]
        columns = [name for name in (ROW_ID, "larf_state") if name in part.column_names]
        categories = [known[ids[place]].category for place in places]
        parts.append(_with(part.select_columns(columns).select(places), {"category": categories}))
    return concatenate_datasets([part for part in parts if len(part)] or parts[:1])


def _with(rows: Dataset, columns: dict[str, Any]) -> Dataset:
    """The rows with these columns, replacing those of the same name in their place."""
    order = list(dict.fromkeys([*rows.column_names, *columns]))
    if not len(rows):  # datasets cannot add a column to no rows
        features = Features({name: TYPES[name] if name in columns else rows.features[name] for name in order})
        return Dataset.from_dict({name: [] for name in order}, features=features)
    new = {name: pa.array(values, TYPES[name].pa_type, from_pandas=True) for name, values in columns.items()}
    with no_progress_bars():
        others = rows.select_columns([name for name in rows.column_names if name not in columns]).with_format(None)
        return concatenate_datasets([others, Dataset(pa.table(new))], axis=1).select_columns(order)
