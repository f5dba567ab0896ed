"""What is lost if decisions replace earlier ones in a folder: answers that came by another door, or by other files."""

import logging
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.columns import ROW_ID
from larf_curate.remote import is_url
from larf_curate.review.decisions.merge import Decision

logger = logging.getLogger(__name__)
FILE = "decisions.parquet"
SHOWN = 5
"""Rows and people that the warning names."""


def warn_of_lost(folder: str | Path, decisions: Iterable[Decision]) -> None:
    """Tell whose answers an earlier outcome in a folder has, and the one that replaces it has not.

    Rows whose content changed are left out: they are counted as stale.

    Args:
        folder: The folder; one at a URL is not read.
        decisions: The decisions that are to be written.
    """
    given = {row.row_id: row for row in decisions}
    lost = {}
    for name, annotators in _earlier(folder):
        row = given.get(name)
        if row is None or row.status != "stale":
            lost[name] = set(annotators).difference(row.annotators if row else ())
    lost = {name: people for name, people in lost.items() if people}
    if lost:
        people = sorted(set().union(*lost.values()))
        logger.warning(
            "%s has answers of %s to %d rows that are not among the decisions which replace it now (%s): give all "
            "files in one import, and write decisions of a server and of files to different folders",
            folder,
            _listed(people),
            len(lost),
            _listed(list(lost)),
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _earlier(folder: str | Path) -> list[tuple[str, list[str]]]:
    """Row ids and annotators of the decisions in a folder; none if it has none that can be read."""
    if is_url(folder) or not (file := Path(folder, FILE)).is_file():
        return []
    try:
        rows = pq.read_table(file, columns=[ROW_ID, "annotators"]).to_pylist()
    except (OSError, ValueError, pa.ArrowException):
        return []
    return [(row[ROW_ID], row["annotators"] or []) for row in rows]
