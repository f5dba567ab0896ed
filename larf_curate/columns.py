"""The ``larf_*`` columns of scored and selected rows, and what identifies a row."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from larf_curate.states import Vectors

PREFIX = "larf_"
"""What the names of all columns that this package adds begin with."""
ROW_ID = "larf_row_id"
STATE = "larf_state"


def content_digest(row: Mapping[str, Any]) -> str:
    """Hex digest of a row's own columns, without those this package adds."""
    own = {key: value for key, value in row.items() if not key.startswith(PREFIX)}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()


def row_id(source: str, index: int, row: Mapping[str, Any]) -> str:
    """Id of a row: a hex digest of where it comes from, its index there and its content."""
    return hashlib.sha256(f"{source}\n{index}\n{content_digest(row)}".encode("utf-8", "replace")).hexdigest()[:32]


def states_of(rows: Dataset) -> Vectors | None:
    """The column ``larf_state`` as shape (n, d); rows without a state of the usual width are NaN; None without states.

    Args:
        rows: Rows of a selection.
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
    """The rows without their states, which take long to read row by row."""
    return rows.select_columns([name for name in rows.column_names if name != STATE])
