"""Columns of an earlier scoring in rows that are scored again: reported, and removed where they would mislead."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace

from larf_curate.columns import GUARD, PREFIX, STATE
from larf_curate.data.sources import Source

logger = logging.getLogger(__name__)
OPTIONAL = ("larf_neighbors", STATE, GUARD)
"""Columns that a scorer may not write: those of an earlier scoring would be taken for its own."""


def without_earlier_columns(source: Source, written: Collection[str]) -> Source:
    """Remove optional columns of an earlier scoring, and report all ``larf_*`` columns of the rows.

    Args:
        source: The rows to be scored.
        written: Names of the columns that the scorer writes.

    Returns:
        The same rows, without the columns in `OPTIONAL` that the scorer does not write.
    """
    names = source.pieces[0].rows.column_names
    outdated = _outdated(names, written)
    report_earlier_columns(names, written, outdated="removed")
    pieces = tuple(replace(piece, rows=piece.rows.remove_columns(outdated)) for piece in source.pieces)
    return replace(source, pieces=pieces) if outdated else source


def report_earlier_columns(names: Iterable[str], written: Collection[str], *, outdated: str) -> None:
    """Warn about ``larf_*`` columns in rows to be scored; without any, do nothing.

    Args:
        names: Names of the columns of the rows.
        written: Names of the columns that the scorer writes.
        outdated: What happens to optional columns that the scorer does not write.
    """
    present = [name for name in names if name.startswith(PREFIX)]
    stale = _outdated(present, written)
    kept = [name for name in present if name not in written and name not in stale]
    found = {"replaced": [name for name in present if name in written], outdated: stale, "kept": kept}
    if present:
        listed = "; ".join(f"{', '.join(group)} {action}" for action, group in found.items() if group)
        logger.warning("the rows already have columns of an earlier scoring: %s", listed)


def _outdated(names: Iterable[str], written: Collection[str]) -> list[str]:
    return [name for name in names if name in OPTIONAL and name not in written]
