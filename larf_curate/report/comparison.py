"""Comparison of two scored datasets of the same rows: rank agreement, scores of both, and rows that change sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.columns import ROW_ID
from larf_curate.data.tables import read_column
from larf_curate.errors import InputError
from larf_curate.report.page import check_path, facts_of, render
from larf_curate.report.plots import Plot, score_against_score
from larf_curate.report.sampling import Indices
from larf_curate.report.scored_rows import ReportRows, read_report_rows
from larf_curate.report.statistics import Floats
from larf_curate.report.table import TableRow, read_table
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import row_ids
from larf_curate.stats import rank_correlation
from larf_curate.version import __version__

TOP_SHARE = 0.05
"""Share of the rows with a score that are compared as flagged, from the highest, where there is no selection."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Side:
    """One of the two datasets, with n rows in the order of the first.

    Args:
        name: Name of its folder.
        scores: Shape (n,), NaN where a row has no score.
        flagged: Mask of the flagged rows with a score, shape (n,).
        rule: Which rows count as flagged.
    """

    name: str
    scores: Floats
    flagged: NDArray[np.bool_]
    rule: str

    @property
    def ranks(self) -> NDArray[np.int64]:
        """Rank of each row, 1 for the highest score; rows without a score have the last ranks."""
        ranks = np.empty(len(self.scores), np.int64)
        ranks[np.argsort(-self.scores, kind="stable")] = np.arange(1, len(self.scores) + 1)
        return ranks


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row that one of the two sides flags."""

    row: TableRow
    scores: tuple[float, float]
    ranks: tuple[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two scored datasets of the same rows.

    Args:
        sides: The two.
        correlation: Spearman's rank correlation of the scores in [-1, 1]; None if undefined.
        compared: Number of rows with a score in both.
    """

    sides: tuple[Side, Side]
    correlation: float | None
    compared: int

    @classmethod
    def of(cls, first: Side, second: Side) -> "Comparison":
        """Compare two sides, whose rows are in the same order."""
        known = np.isfinite(first.scores) & np.isfinite(second.scores)
        correlation = rank_correlation(first.scores[known], second.scores[known])
        return cls(sides=(first, second), correlation=correlation, compared=int(known.sum()))

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by which side flags them."""
        first, second = (side.flagged for side in self.sides)
        return {
            "flagged by both": int((first & second).sum()),
            "by the first alone": int((first & ~second).sum()),
            "by the second alone": int((second & ~first).sum()),
            "by neither": int((~first & ~second).sum()),
        }

    def changed(self, *, first: bool, count: int) -> Indices:
        """Indices of rows that only one side flags, those whose ranks differ most first.

        Args:
            first: Whether it is the first side.
            count: Maximum number of rows.
        """
        one, other = self.sides if first else self.sides[::-1]
        rows = np.flatnonzero(one.flagged & ~other.flagged)
        moved = one.ranks[rows] - other.ranks[rows]
        return rows[np.argsort(moved, kind="stable")][:count]


def write_comparison(
    scored: Dataset | str | Path, against: Dataset | str | Path, path: str | Path, *, examples: int = 50
) -> Path | str:
    """Write a page that compares two scored datasets of the same rows.

    Args:
        scored: A scored dataset, or a folder or URL that ``larf-curate score``, ``select`` or ``review pull`` wrote.
        against: The same rows, scored with another profile or selected otherwise.
        path: The HTML file to write, or its URL; an existing one is replaced atomically, other files are not.
        examples: Maximum number of rows to show that only one side flags, for each side.

    Returns:
        The path of the file, or its URL.

    Raises:
        InputError: If one is not scored, or the two do not have the same rows.
    """
    if examples < 0:
        raise InputError(f"wanted examples to be 0 or more, got {examples}")
    check_path(path)
    both = read_report_rows(scored), read_report_rows(against)
    comparison = Comparison.of(_side(both[0], "first"), _side(both[1], "second", order=_order(*both)))
    changes = [
        (side.name, list(_changes(comparison, both[0], first=side is comparison.sides[0], count=examples)))
        for side in comparison.sides
    ]
    return render(
        "comparison.html.j2",
        {
            "comparison": comparison,
            "facts": _facts(both),
            "plot": _plot(comparison),
            "changes": changes,
            "version": __version__,
        },
        path,
    )


def _order(first: ReportRows, second: ReportRows) -> Indices:
    """Index in the second dataset of each row of the first, found by row id.

    Raises:
        InputError: If the two do not have the same rows.
    """
    # Ids name the source too, which may be another copy of the rows: if both are to be made, they are made without it.
    made = not any(ROW_ID in side.rows.column_names for side in (first, second))
    ids = [_id_digests(side, "" if made else _source_id(side)) for side in (first, second)]
    orders = [np.argsort(each, kind="stable") for each in ids]
    common = len(np.intersect1d(ids[0], ids[1]))
    if not len(ids[0]) == len(ids[1]) == common:
        raise InputError(
            f"wanted the same rows in both, got {len(ids[0]):,} and {len(ids[1]):,} with {common:,} in common: compare "
            "folders that were scored from the same dataset, with the same split and limit"
        )
    places = np.empty(common, np.intp)
    places[orders[0]] = orders[1]
    return places


def _id_digests(side: ReportRows, source: str) -> NDArray[np.bytes_]:
    """Digests of the row ids, 16 bytes each, in row order."""
    digests = (blake2b(name.encode("utf-8", "replace"), digest_size=16).digest() for name in row_ids(side.rows, source))
    return np.fromiter(digests, "S16", len(side.rows))


def _source_id(side: ReportRows) -> str:
    return side.scored.source_id if isinstance(side.scored, Scored) else ""


def _side(side: ReportRows, name: str, *, order: Indices | None = None) -> Side:
    """Scores and flags of a dataset, in another order if one is given."""
    scores = np.fromiter((np.nan if x is None else x for x in read_column(side.rows, "larf_score")), np.float64)
    scores[~np.isfinite(scores)] = np.nan
    if selected := "larf_flagged" in side.rows.column_names:
        flagged = np.fromiter(read_column(side.rows, "larf_flagged"), np.bool_) & np.isfinite(scores)
    else:
        flagged = np.zeros(len(scores), np.bool_)
        known = int(np.isfinite(scores).sum())
        flagged[np.argsort(-scores, kind="stable")[: round(TOP_SHARE * known)]] = True
    order = np.arange(len(scores)) if order is None else order
    return Side(
        name=side.folder or name,
        scores=scores[order],
        flagged=flagged[order],
        rule="flagged rows of the selection" if selected else f"the highest {TOP_SHARE:.0%}, as there is no selection",
    )


def _changes(comparison: Comparison, rows: ReportRows, *, first: bool, count: int) -> Iterator[Change]:
    indices = comparison.changed(first=first, count=count)
    ranks = [side.ranks for side in comparison.sides]
    for index, row in zip(indices.tolist(), read_table(rows.rows, indices, rows.columns), strict=True):
        scores, places = zip(
            *((s.scores[index], r[index]) for s, r in zip(comparison.sides, ranks, strict=True)), strict=True
        )
        yield Change(row=row, scores=scores, ranks=places)


def _facts(both: Sequence[ReportRows]) -> list[tuple[str, str, str]]:
    """Labels, and the values of both sides."""
    first, second = (dict(facts_of(side)) for side in both)
    return [(label, first.get(label, "–"), second.get(label, "–")) for label in {**first, **second}]


def _plot(comparison: Comparison) -> Plot | None:
    """Scores against each other; None if no row has both."""
    if not comparison.compared:
        return None
    first, second = comparison.sides
    labels: Any = (f"score, {first.name}"[:60], f"score, {second.name}"[:60])
    return score_against_score(first.scores, second.scores, labels=labels)
