"""Columns of an earlier scoring or review in rows that are scored again: reported, and never taken for new ones."""

import logging
from collections.abc import Collection, Iterable
from dataclasses import replace

from larf_curate.columns import PREFIX
from larf_curate.data.sources import Source

logger = logging.getLogger(__name__)


def without_earlier_columns(source: Source, written: Collection[str]) -> Source:
    """Remove the ``larf_*`` columns of an earlier scoring or review, and report them.

    Args:
        source: The rows to be scored.
        written: Names of the columns that the scorer writes, which replace columns of these names.

    Returns:
        The same rows, without the ``larf_*`` columns that the scorer does not write.
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
        outdated: What happens to the columns that the scorer does not write.
    """
    present = [name for name in names if name.startswith(PREFIX)]
    found = {"replaced": [name for name in present if name in written], outdated: _outdated(present, written)}
    if present:
        listed = "; ".join(f"{', '.join(group)} {action}" for action, group in found.items() if group)
        logger.warning("the rows already have columns of an earlier curation: %s", listed)


def _outdated(names: Iterable[str], written: Collection[str]) -> list[str]:
    return [name for name in names if name.startswith(PREFIX) and name not in written]
