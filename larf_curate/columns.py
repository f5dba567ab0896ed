"""Names of the ``larf_*`` columns, row ids and content digests, and stored hidden states."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from heapq import merge
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from larf_curate.errors import InputError
from larf_curate.states import Vectors

PREFIX = "larf_"
"""Prefix of the names of all columns that this package adds."""
ROW_ID = "larf_row_id"
"""Column of the stable id of each row; see `row_id`."""
INDEX = "larf_index"
"""Column of the position of each row in the scored dataset, from 0; see `select`."""
SCORE = "larf_score"
"""Column of the score of each row."""
STATE = "larf_state"
"""Column of the stored hidden state of each row."""
DECISION = "larf_decision"
"""Column of the decision on each row of a review."""
UNFLAGGED = "unflagged"
"""Decision on rows that nobody was asked about, as they were not flagged."""
_MADE_ID = re.compile("[0-9a-f]{32}")
GUARD = "larf_guard"
"""Column of a guard model's verdict on each row: ``request`` and ``answer``, probabilities of unsafe; ``status``."""


def source_columns(names: Iterable[str]) -> list[str]:
    """Return the column names that are the source dataset's own, in order: all without the prefix ``larf_``."""
    return [name for name in names if not name.startswith(PREFIX)]


def content_digest(row: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a row's original columns, without the ``larf_*`` columns.

    Args:
        row: A row; columns are digested in name order, and values that are not JSON by their string form.
    """
    original = {key: row[key] for key in source_columns(row)}
    return hashlib.sha256(json.dumps(original, sort_keys=True, default=str).encode()).hexdigest()


def row_id(source: str, index: int, row: Mapping[str, Any]) -> str:
    """Stable id of a row, 32 hex digits: a digest of its source, its index there and its content.

    Args:
        source: Description of the dataset, such as `Scored.source_id`.
        index: Index of the row in the dataset, which makes the ids of duplicate rows differ.
        row: The row; its ``larf_*`` columns do not count.
    """
    return hashlib.sha256(f"{source}\n{index}\n{content_digest(row)}".encode("utf-8", "replace")).hexdigest()[:32]


def ids_digest(ids: Iterable[str]) -> str:
    """Hex SHA-256 of row ids, in any order.

    In memory, an id that `row_id` made takes 16 bytes, and another one as much as its text.
    """
    packed, others = bytearray(), []
    for name in ids:
        if isinstance(name, str) and _MADE_ID.fullmatch(name):
            packed += bytes.fromhex(name)
        else:
            others.append(name)
    made = np.frombuffer(packed, "S16")
    made.sort()
    digest = hashlib.sha256()
    for name in merge((made[i : i + 1].tobytes().hex() for i in range(len(made))), sorted(others)):
        digest.update(f"{name}\n".encode("utf-8", "replace"))
    return digest.hexdigest()


def duplicates(ids: Iterable[str]) -> int:
    """Number of ids that another one equals; in memory, each takes 16 bytes."""
    digests = (hashlib.blake2b(repr(name).encode(), digest_size=16).digest() for name in ids)
    ordered = np.fromiter(digests, "S16")
    ordered.sort()
    return int((ordered[1:] == ordered[:-1]).sum())


def scores_digest(scores: pa.ChunkedArray) -> str:
    """Hex SHA-256 of the number of rows and of their scores, in any order; it binds rows to the run that scored them.

    Args:
        scores: The column ``larf_score``; null, NaN and infinite values are rows without a score.

    Raises:
        InputError: If they are no numbers.
    """
    try:
        values = scores.cast(pa.float32()).drop_null().to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"wanted numbers in {SCORE}, got {scores.type}: score the rows again") from error
    finite = np.sort(values[np.isfinite(values)]) + np.float32(0)  # -0 becomes 0
    return hashlib.sha256(f"{len(scores)}\n".encode() + finite.astype("<f4").tobytes()).hexdigest()


def states_of(rows: Dataset) -> Vectors | None:
    """Return the column ``larf_state`` as a matrix.

    Args:
        rows: Scored or selected rows.

    Returns:
        States of shape (n, d), float32, with NaN for rows without a state or with a narrower one; None if no row has a
        state.
    """
    if STATE not in rows.column_names or not len(rows):
        return None
    column = rows.select_columns([STATE]).with_format("arrow")[:][STATE].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    if not (width := int(lengths.max())):
        return None
    usable = lengths == width
    states = np.full((len(rows), width), np.nan, np.float32)
    values = column.filter(pa.array(usable)).flatten().to_numpy(zero_copy_only=False)
    states[usable] = values.astype(np.float32).reshape(-1, width)
    return states


def stateless(rows: Dataset) -> Dataset:
    """Return the rows without the column ``larf_state``, which is slow to read row by row."""
    return rows.select_columns([name for name in rows.column_names if name != STATE])
