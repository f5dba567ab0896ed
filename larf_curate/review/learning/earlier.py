"""Decisions on other datasets that the same profile scored: their ranking is transferred by learning from both.

The scores of one profile have one scale, and its states one space, whatever dataset they are of. So the rows that were
decided there are further rows of the regression; only the scale of scores and signals is that of the rows to be ranked.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from larf_curate.columns import ROW_ID, SCORE, STATE
from larf_curate.errors import InputError, ProfileMismatchError
from larf_curate.review.decisions.folder import DecisionsFolder
from larf_curate.review.decisions.outcome import STATES_FILE
from larf_curate.review.learning.inputs import DecidedRows, StoredRows
from larf_curate.review.learning.ranking import POSITIVE

logger = logging.getLogger(__name__)


def load_earlier(
    folders: Iterable[str | Path], *, profile: str | None, signals: Sequence[str], known: Collection[str]
) -> DecidedRows | None:
    """Read the decided rows of folders that ``review pull`` or ``review import`` wrote.

    Args:
        folders: The folders, or their URLs.
        profile: Digest of the profile that scored the rows that are to be ranked; None if it is not known.
        signals: Names of their signals.
        known: Their row ids. Decisions on these are left out: the review of these rows has them.

    Returns:
        The rows, each row id once; None without folders.

    Raises:
        ProfileMismatchError: If another profile scored the rows.
        InputError: If a folder is damaged or has no states.
    """
    seen = set(known)
    parts = [_read(DecisionsFolder.load(folder), profile, signals, seen) for folder in folders]
    if not parts:
        return None
    rows = parts[0].rows
    for part in parts[1:]:
        rows = rows.followed_by(part.rows)
    return DecidedRows(rows=rows, positive=np.concatenate([part.positive for part in parts]))


def _read(folder: DecisionsFolder, profile: str | None, signals: Sequence[str], seen: set[str]) -> DecidedRows:
    """The decided rows of a folder without those whose ids were seen, to which its own are added."""
    _check_same_profile(folder, profile)
    if not (folder.path / STATES_FILE).exists():
        raise InputError(
            f"{folder.name} has no states of the decided rows: score with states (not with --no-states), and pull or "
            "import the decisions again"
        )
    table = pq.read_table(folder.path / STATES_FILE)
    if problem := _problem(table, folder):
        raise InputError(
            f"{folder.name}/{STATES_FILE} {problem}: pull or import the decisions again, from the selection that was "
            "reviewed"
        )
    ids = table[ROW_ID].to_pylist()
    if left_out := sum(row in seen for row in ids):
        logger.warning(
            "%s: %d decisions are on rows that are in this dataset or another folder too, and are left out",
            folder.name,
            left_out,
        )
    chosen = [row for row in ids if row not in seen]
    table = table.filter(pa.array([row not in seen for row in ids], pa.bool_()))
    seen.update(ids)
    positive = np.array([folder.decided[row].decision in POSITIVE for row in chosen], bool)
    return DecidedRows(rows=StoredRows.of_table(table, signals), positive=positive)


def _problem(table: pa.Table, folder: DecisionsFolder) -> str:
    """Why states are not those of the decided rows; empty if they are."""
    if missing := [name for name in (ROW_ID, SCORE, STATE) if name not in table.column_names]:
        return f"has no column {missing[0]}"
    if Counter(table[ROW_ID].to_pylist()) != Counter(folder.decided.keys()):
        return "has other rows than those that were decided"
    states = table[STATE]
    if not pa.types.is_list(states.type) and not pa.types.is_fixed_size_list(states.type):
        return f"has no lists in {STATE}"
    values, widths = pc.list_flatten(states), pc.list_value_length(states)
    if (
        not pa.types.is_floating(values.type)
        or not pc.all(pc.is_finite(values.cast(pa.float32())), min_count=0).as_py()
    ):
        return f"has values in {STATE} that are no finite numbers"
    return "" if len(widths.drop_null().unique()) <= 1 else f"has lists of several lengths in {STATE}"


def _check_same_profile(folder: DecisionsFolder, profile: str | None) -> None:
    """Check that a profile scored both the decided rows and the rows to be ranked.

    Raises:
        ProfileMismatchError: If it did not, or if it is not recorded which one did.
    """
    recorded = folder.profile
    if recorded is not None and recorded == profile:
        return
    differ = "another profile scored" if recorded and profile else "it is not recorded which profile scored"
    raise ProfileMismatchError(
        f"{differ} the rows decided in {folder.name} ({(recorded or 'none')[:12]} against {(profile or 'none')[:12]}): "
        "scores and states of two profiles cannot be compared; score both datasets with one profile, or add the "
        "decisions to a profile (larf-curate profile PROFILE --add-decisions DEC)"
    )
