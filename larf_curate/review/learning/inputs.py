"""What scoring and the profile have left: numbers and states, no model and no text."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.errors import InputError
from larf_curate.profile import SafetyProfile

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """States of a profile's references at its first layer, each of shape (m, d), float32.

    Args:
        unsafe: Of compliant answers to harmful prompts.
        safe: Of refusals.
        neutral: Of ordinary rows; their mean is the centre of the space.
    """

    unsafe: NDArray[np.float32]
    safe: NDArray[np.float32]
    neutral: NDArray[np.float32]

    @classmethod
    def of(cls, profile: SafetyProfile) -> "References":
        """The references of a profile, at the layer whose states scoring keeps."""
        unsafe, safe, neutral = (profile.states[side]["last"][:, 0] for side in ("unsafe", "safe", "neutral"))
        return cls(unsafe=unsafe, safe=safe, neutral=neutral)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredRows:
    """What scoring has left of n rows.

    Args:
        scores: ``larf_score``, shape (n,), NaN where a row could not be scored; high = bad.
        signals: ``larf_signals``, shape (n, s); NaN where there is none.
        states: ``larf_state`` of the rows that have one, shape (k, d), float16.
        has_state: Which rows have one, shape (n,), k of them true.
    """

    scores: Floats
    signals: Floats
    states: NDArray[np.float16]
    has_state: NDArray[np.bool_]

    @classmethod
    def of(cls, dataset: Dataset) -> "StoredRows":
        """Read the columns of a scored dataset.

        Raises:
            InputError: If it has no scores or no states.
        """
        names = [name for name in ("larf_score", "larf_signals", "larf_state") if name in dataset.column_names]
        if "larf_score" not in names or "larf_state" not in names:
            raise InputError(
                f"wanted rows with larf_score and larf_state, got {names}: score them with keep_states "
                "(larf-curate score --keep-states)"
            )
        table = dataset.select_columns(names).with_format("arrow")[:]
        return cls(
            scores=_column(table["larf_score"]),
            signals=_signals(table["larf_signals"]) if "larf_signals" in names else np.empty((len(table), 0)),
            states=_states(table["larf_state"]),
            has_state=np.asarray(table["larf_state"].is_valid()),
        )


def _signals(column: pa.ChunkedArray) -> Floats:
    names = [field.name for field in column.type]
    return np.column_stack([_column(pc.struct_field(column, name)) for name in names] or [np.empty((len(column), 0))])


def _column(column: pa.ChunkedArray) -> Floats:
    """A column of numbers; null becomes NaN."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def _states(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """The states of the rows that have one, shape (k, d)."""
    known = int(column.length()) - column.null_count
    parts = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), np.float16) for chunk in column.chunks]
    return np.concatenate(parts).reshape(known, -1) if known else np.empty((0, 0), np.float16)
