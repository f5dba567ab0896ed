"""Statistics of a report, computed from the scored rows in one pass."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.errors import ConversationError, InputError
from larf_curate.stats import correlation, rank_correlation

Floats = NDArray[np.float64]

_BATCH = 1000  # rows in memory at a time
_UNUSED_COLUMNS = ("larf_state", "larf_neighbors", "larf_signals", "larf_reason")


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """Statistics of n rows scored at L layers.

    Args:
        scores: Shape (n,); higher means closer to unsafe, NaN where a row has no score.
        lengths: Length of each conversation in characters, shape (n,), NaN where a row is not a conversation.
        layer_scores: Shape (n, L), NaN where a row has no score; L is 0 without the column ``larf_layer_scores``.
        flagged: Mask of the rows that a selection flagged, shape (n,); None without a selection.
        statuses: Number of rows by status, the most frequent first.
    """

    scores: Floats
    lengths: Floats
    layer_scores: NDArray[np.float32]
    flagged: NDArray[np.bool_] | None
    statuses: Mapping[str, int]

    @property
    def scored(self) -> NDArray[np.bool_]:
        """Mask of the rows with a score, shape (n,)."""
        return np.isfinite(self.scores)

    @property
    def flagged_scored(self) -> NDArray[np.bool_]:
        """Mask of the rows flagged by their score, shape (n,).

        Rows without a score are flagged too, but the report counts them separately as not scorable.
        """
        return np.zeros_like(self.scored) if self.flagged is None else self.scored & self.flagged

    @property
    def has_lengths(self) -> bool:
        """Whether the length of any row with a score is known."""
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

    def highest(self, count: int) -> list[int]:
        """Indices of the rows with the highest scores, highest first, ties in row order."""
        scores = self.scores[self.scored]
        count = min(count, len(scores))
        if not count:
            return []
        scores.partition(len(scores) - count)  # in place, which takes less memory than sorting all
        candidates = np.flatnonzero(self.scored & (self.scores >= scores[-count]))
        order = np.argsort(-self.scores[candidates], kind="stable")
        return [int(index) for index in candidates[order[:count]]]

    def unscored(self) -> NDArray[np.intp]:
        """Indices of the rows without a score."""
        return np.flatnonzero(~self.scored)

    def length_correlation(self) -> tuple[float, float]:
        """Pearson's r and Spearman's rho of score and length, in [-1, 1]; NaN if score or length is constant."""
        known = self.scored & np.isfinite(self.lengths)
        which = slice(None) if known.all() else known  # a mask makes copies
        scores, lengths = self.scores[which], self.lengths[which]
        ranked = rank_correlation(scores, lengths)  # None if undefined, and then so is Pearson's r
        return (np.nan, np.nan) if ranked is None else (correlation(scores, lengths), ranked)


def read_statistics(rows: Dataset, columns: Mapping[str, str] | None = None) -> Statistics:
    """Compute the statistics in batches, without loading large columns such as stored states.

    Args:
        rows: Scored rows.
        columns: Column names by role, if the user gave any.

    Returns:
        The statistics; arrays are in row order.

    Raises:
        InputError: If rows differ in their number of layer scores.
    """
    unused = [name for name in _UNUSED_COLUMNS if name in rows.column_names]
    scores, lengths = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    flagged, layers = np.zeros(len(rows), np.bool_), _LayerScores(len(rows))
    statuses: Counter[str] = Counter()
    # The arrow format returns cells as they are stored: features such as images would be decoded for nothing.
    batches = rows.with_format("arrow").iter(_BATCH)
    cells = (row for batch in batches for row in batch.drop_columns(unused).to_pylist())
    for index, row in enumerate(cells):
        scores[index] = row["larf_score"]
        layers.add(index, row.get("larf_layer_scores") or ())
        flagged[index] = bool(row.get("larf_flagged"))
        statuses[str(row["larf_status"])] += 1
        lengths[index] = _length(row, columns)
    return Statistics(
        scores=scores,
        lengths=lengths,
        layer_scores=layers.values,
        flagged=flagged if "larf_flagged" in rows.column_names else None,
        # Equal counts in alphabetical order: the page must not depend on the order of the rows.
        statuses=dict(sorted(statuses.items(), key=lambda item: (-item[1], item[0]))),
    )


def _length(row: Row, columns: Mapping[str, str] | None) -> float:
    """Total number of characters of all turns; NaN if the row is not a conversation."""
    try:
        return sum(len(message["content"]) for message in to_messages(row, columns))
    except ConversationError:
        return np.nan


class _LayerScores:
    """Layer scores of rows, shape (rows, layers); NaN for rows without any."""

    def __init__(self, rows: int) -> None:
        self.values = np.full((rows, 0), np.nan, np.float32)

    def add(self, index: int, scores: Sequence[float]) -> None:
        """Set the scores of a row; the first row with any tells the number of layers."""
        if not len(scores):
            return
        if not self.values.shape[1]:
            self.values = np.full((len(self.values), len(scores)), np.nan, np.float32)
        if len(scores) != self.values.shape[1]:
            layers = sorted({len(scores), self.values.shape[1]})
            raise InputError(f"larf_layer_scores has rows of {layers} layers: score all rows with the same profile")
        self.values[index] = scores
