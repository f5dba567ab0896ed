"""Re-ranking of a queue and its selection by the decisions so far."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets

from larf_curate.columns import ROW_ID
from larf_curate.data.tables import no_progress_bars
from larf_curate.review.argilla.settings import (
    LEARNED_SCORE,
    LEARNED_SCORE_TITLE,
    MACHINE_SCORE,
    MACHINE_SCORE_TITLE,
    SCORE,
)
from larf_curate.review.learning import LEARNED, Learned
from larf_curate.review.learning.nearest_decided import NearestDecided
from larf_curate.review.learning.snapshot import Snapshot
from larf_curate.review.records.evidence import with_learned
from larf_curate.review.records.push import json_batches, json_items
from larf_curate.review.records.reason import ADDED
from larf_curate.scoring.selection import Selection

if TYPE_CHECKING:
    from larf_curate.scoring.exemplars import ExemplarIndex  # imports torch, which takes seconds

ADDED_TYPES = {
    "larf_flagged": Value("bool"),
    "larf_reason": Value("string"),
    "category": Value("string"),
    LEARNED: Value("float32"),
}
LIKELY = 0.5
"""Probability of removal above which a row outside the queue counts as overlooked."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reranked:
    """Result of re-ranking a queue.

    Args:
        learned: The learned ranking: of the flagged rows, then the kept rows of the selection that was given.
        updated: Number of undecided records whose score changed on the server.
        added: Row ids of unflagged rows that were added to the queue.
        overlooked: Number of rows outside the queue that are more likely than not to be removed.
        selection: The selection with the column ``larf_learned_score``; rows that were added to the queue are flagged,
            and flagged rows are sorted by it, worst first.
        removed: Rows that people removed: ``larf_row_id``, ``larf_state`` and ``category``, which is null if none was
            given.
        url: Address of the queue in the browser, sorted worst first.
    """

    learned: Learned
    updated: int
    added: tuple[str, ...]
    overlooked: int
    selection: Selection
    removed: Dataset
    url: str

    def summary(self) -> dict[str, Any]:
        """Counts, held-out accuracy and link, as JSON values."""
        counts = {"updated": self.updated, "added": list(self.added), "overlooked": self.overlooked}
        return {**self.learned.summary(), **counts, "url": self.url}

    def exemplars(self, index: "ExemplarIndex") -> "ExemplarIndex":
        """Extend an index by the removed rows, so that they are among the nearest exemplars of rows scored later.

        Args:
            index: Exemplars at the layer whose states scoring stored.
        """
        present = set(index.ids)
        rows = [row for row in self.removed if row[ROW_ID] not in present and row["larf_state"] is not None]
        return index.add(rows) if rows else index

    def save(self, folder: str | Path) -> None:
        """Save the selection to a folder, for ``review pull`` and ``report``."""
        self.selection.save(folder)


def update_scores(snapshot: Snapshot) -> int:
    """Write machine's and learned score to all records, and sort the undecided ones on the page by the learned one.

    The evidence says both scores, and which rows that people decided are nearest. Without decisions nothing is written.

    Args:
        snapshot: The queue and its ranking.

    Returns:
        Number of undecided records whose score by which the page sorts has changed.
    """
    if not snapshot.decided and not snapshot.learned.earlier:
        return 0
    nearest = NearestDecided.of(snapshot)
    updates, moved = [], 0
    for record in snapshot.records:
        update = _with_scores(record, snapshot, nearest)
        if update is not None and any(record[name] != value for name, value in update.items()):
            updates.append(update)
            # Compared as float32, the type of learned scores, so that a repeated re-ranking moves nothing.
            moved += bool(np.float32(update["metadata"][SCORE]) != np.float32(record["metadata"][SCORE]))
    if updates:
        snapshot.store.add_property(MACHINE_SCORE, MACHINE_SCORE_TITLE, "float")
        snapshot.store.add_property(LEARNED_SCORE, LEARNED_SCORE_TITLE, "float")
        for batch in json_batches(updates):
            snapshot.store.upsert(json_items(batch))
    return moved


def _with_scores(record: Mapping[str, Any], snapshot: Snapshot, nearest: NearestDecided) -> dict[str, Any] | None:
    """A record with both scores in its metadata and in its evidence; None if it has none or is of no push."""
    index = snapshot.indices.get(record["external_id"])
    metadata = dict(record["metadata"] or {})
    if index is None or SCORE not in metadata or not np.isfinite(snapshot.learned.scores[index]):
        return None
    score = float(snapshot.learned.scores[index])
    machine_score = metadata.get(MACHINE_SCORE, metadata[SCORE])  # SCORE may be a learned one already
    metadata |= {MACHINE_SCORE: machine_score, LEARNED_SCORE: score}
    if record["status"] != "completed":
        metadata[SCORE] = score
    said = (
        f"learned score **{score:.3f}**, machine's score **{machine_score:.3f}**, chance of removal "
        f"{snapshot.learned.chances[index]:.0%}{nearest(record['external_id'])}"
    )
    fields = record["fields"] | {"evidence": with_learned(record["fields"]["evidence"], said)}
    return {"external_id": record["external_id"], "metadata": metadata, "fields": fields}


def overlooked(snapshot: Snapshot, added: Collection[str] = ()) -> int:
    """Number of rows outside the queue that are more likely than not to be removed.

    Args:
        snapshot: The queue and its ranking.
        added: Row ids that were added to the queue since.
    """
    indices = [index for index in snapshot.unqueued if snapshot.row_ids[index] not in added]
    return int((snapshot.learned.chances[indices] > LIKELY).sum())


def flag_more(snapshot: Snapshot, row_ids: Sequence[str]) -> Selection:
    """A selection whose flagged part consists of only these kept rows, with a reason each; it can be pushed.

    Args:
        snapshot: The queue and its ranking.
        row_ids: Ids of the kept rows to flag.
    """
    start = len(snapshot.selection.flagged)
    indices = [snapshot.indices[row] for row in row_ids]
    decisions = snapshot.learned.removed + snapshot.learned.kept
    scores = snapshot.learned.scores
    reasons = [f"{ADDED} {scores[index]:.4f} after {decisions} decisions" for index in indices]
    rows = snapshot.selection.kept.select([index - start for index in indices])
    columns = {"larf_flagged": [True] * len(rows), "larf_reason": reasons}
    return replace(snapshot.selection, flagged=with_columns(rows, columns))


def sorted_by_learned_score(snapshot: Snapshot, newly_flagged: Dataset) -> Selection:
    """The selection with a column of learned scores; flagged rows are sorted by it, unscored ones last.

    Args:
        snapshot: The selection and its ranking.
        newly_flagged: Kept rows that move to the flagged ones, as returned by `flag_more`.
    """
    selection, scores = snapshot.selection, snapshot.learned.scores
    start = len(selection.flagged)
    ids = newly_flagged.with_format(None)[ROW_ID][:]
    moved = np.array([snapshot.indices[row] for row in ids], np.intp)
    parts = [
        with_columns(selection.flagged, {LEARNED: scores[:start]}),
        with_columns(newly_flagged, {LEARNED: scores[moved]}),
    ]
    flagged = concatenate_datasets([part for part in parts if len(part)] or parts[:1])
    flagged_scores = np.concatenate([scores[:start], scores[moved]])
    kept = np.setdiff1d(np.arange(start, len(scores)), moved)
    return replace(
        selection,
        flagged=flagged.select(np.argsort(-np.nan_to_num(flagged_scores, nan=-np.inf), kind="stable")),
        kept=with_columns(selection.kept.select(kept - start), {LEARNED: scores[kept]}),
    )


def removed_rows(snapshot: Snapshot) -> Dataset:
    """The rows that people removed: ``larf_row_id``, ``larf_state`` and the hazard category as ``category``.

    Args:
        snapshot: The selection and its decisions.
    """
    removed = {row: decision for row, decision in snapshot.decided.items() if decision.decision == "remove"}
    parts = []
    for part in (snapshot.selection.flagged, snapshot.selection.kept):
        ids = part.with_format(None)[ROW_ID][:]
        indices = [index for index, row in enumerate(ids) if row in removed]
        columns = [name for name in (ROW_ID, "larf_state") if name in part.column_names]
        categories = [removed[ids[index]].category for index in indices]
        parts.append(with_columns(part.select_columns(columns).select(indices), {"category": categories}))
    return concatenate_datasets([part for part in parts if len(part)] or parts[:1])


def with_columns(rows: Dataset, columns: dict[str, Any]) -> Dataset:
    """The rows with these columns added, or replaced at their position if they exist.

    Types come from ``ADDED_TYPES``, since values that are all null have none.

    Args:
        rows: Rows of a selection.
        columns: Values by name, one for each row.
    """
    order = list(dict.fromkeys([*rows.column_names, *columns]))
    if not len(rows):  # datasets cannot add a column to an empty dataset
        features = Features({name: ADDED_TYPES[name] if name in columns else rows.features[name] for name in order})
        return Dataset.from_dict({name: [] for name in order}, features=features)
    new = {name: pa.array(values, ADDED_TYPES[name].pa_type, from_pandas=True) for name, values in columns.items()}
    with no_progress_bars():
        others = rows.select_columns([name for name in rows.column_names if name not in columns]).with_format(None)
        return concatenate_datasets([others, Dataset(pa.table(new))], axis=1).select_columns(order)
