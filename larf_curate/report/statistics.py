"""The figures of a report, read from the scored rows in one pass."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.errors import ConversationError, InputError
from larf_curate.stats import rank_correlation

Floats = NDArray[np.float64]

_BATCH = 1000
_UNUSED = ("larf_state", "larf_neighbors", "larf_signals", "larf_reason")


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Figures over n rows with L layers.

    Args:
        scores: Shape (n,), NaN where a row has no score.
        lengths: Characters of each conversation, shape (n,), NaN where the row is none.
        layer_scores: Shape (n, L), NaN where a row has no score; L is 0 if the column is not there.
        flagged: Which rows a selection flagged, shape (n,); None if no selection was made.
        statuses: Rows by status, the most frequent first.
    """

    scores: Floats
    lengths: Floats
    layer_scores: NDArray[np.float32]
    flagged: NDArray[np.bool_] | None
    statuses: Mapping[str, int]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Which rows have a score, shape (n,)."""
        return np.isfinite(self.scores)

    @property
    def flagged_scored(self) -> NDArray[np.bool_]:
        """Which rows a selection flagged for their score, shape (n,); those without one are set aside, not flagged."""
        return np.zeros_like(self.scored) if self.flagged is None else self.scored & self.flagged

    @property
    def has_lengths(self) -> bool:
        """Whether any row with a score could be read as a conversation."""
        return bool(np.isfinite(self.lengths[self.scored]).any())

    @property
    def mean(self) -> float:
        """Mean score."""
        return float(self.scores[self.scored].mean())

    @property
    def median(self) -> float:
        """Median score."""
        return float(np.median(self.scores[self.scored]))

    @property
    def deviation(self) -> float:
        """Standard deviation of the scores."""
        return float(self.scores[self.scored].std())

    def ranking(self) -> list[int]:
        """Places of the rows with a score, highest score first, ties in row order."""
        order = np.argsort(np.where(self.scored, -self.scores, np.inf), kind="stable")
        return [int(place) for place in order[: self.scored.sum()]]

    def unscored(self) -> list[int]:
        """Places of the rows without a score."""
        return [int(place) for place in np.flatnonzero(~self.scored)]

    def length_correlation(self) -> tuple[float, float]:
        """Pearson's and Spearman's correlation of score and length; NaN where one of them does not vary."""
        known = self.scored & np.isfinite(self.lengths)
        scores, lengths = self.scores[known], self.lengths[known]
        ranked = rank_correlation(scores, lengths)
        return (np.nan, np.nan) if ranked is None else (float(np.corrcoef(scores, lengths)[0, 1]), ranked)


def read_statistics(rows: Dataset, columns: Mapping[str, str] | None = None) -> Statistics:
    """Read the figures in batches; stored states and neighbours are never loaded.

    Args:
        rows: Scored rows.
        columns: Column names by role, where the user gave them.

    Returns:
        The figures, rows in the order of the dataset.

    Raises:
        InputError: If rows differ in their number of layer scores.
    """
    table = rows.remove_columns([name for name in _UNUSED if name in rows.column_names]).with_format("arrow")
    scores, lengths, layers, flagged = [], [], [], []
    statuses: Counter[str] = Counter()
    for batch in table.iter(batch_size=_BATCH):
        for row in batch.to_pylist():
            scores.append(row["larf_score"])
            layers.append(np.array(row.get("larf_layer_scores") or (), dtype=np.float32))
            flagged.append(bool(row.get("larf_flagged")))
            statuses[str(row["larf_status"])] += 1
            lengths.append(_length(row, columns))
    return Statistics(
        scores=np.array(scores, dtype=np.float64),
        lengths=np.array(lengths, dtype=np.float64),
        layer_scores=_matrix(layers),
        flagged=np.array(flagged, dtype=np.bool_) if "larf_flagged" in rows.column_names else None,
        statuses=dict(sorted(statuses.items(), key=lambda item: (-item[1], item[0]))),
    )


def _length(row: Row, columns: Mapping[str, str] | None) -> float:
    """Characters of all turns together; NaN if the row is no conversation."""
    try:
        return sum(len(message["content"]) for message in to_messages(row, columns))
    except ConversationError:
        return np.nan


def _matrix(layers: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Stack the rows' layer scores; a row without any becomes a row of NaN."""
    widths = {len(values) for values in layers if len(values)}
    if len(widths) > 1:
        raise InputError(f"larf_layer_scores has rows of {sorted(widths)} layers: score all rows with one profile")
    absent = np.full(max(widths, default=0), np.nan, dtype=np.float32)
    return np.array([values if len(values) else absent for values in layers], dtype=np.float32).reshape(
        len(layers), len(absent)
    )
