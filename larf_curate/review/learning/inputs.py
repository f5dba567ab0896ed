"""Stored scores and states used for re-ranking: those of scored rows and of a profile's references."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.errors import InputError

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """Last-token states of a profile's references at its first layer, each of shape (m, d), float32.

    Args:
        unsafe: States of compliant answers to harmful prompts.
        safe: States of refusals.
        neutral: States of neutral rows; their mean is the centre of the space.
    """

    unsafe: NDArray[np.float32]
    safe: NDArray[np.float32]
    neutral: NDArray[np.float32]

    @classmethod
    def of(cls, profile: "SafetyProfile") -> "References":
        """The references of a profile, at the layer whose states scoring stores."""
        unsafe, safe, neutral = (profile.states[side]["last"][:, 0] for side in ("unsafe", "safe", "neutral"))
        return cls(unsafe=unsafe, safe=safe, neutral=neutral)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredRows:
    """Stored scores and states of n scored rows.

    Args:
        scores: ``larf_score``, shape (n,), float64; NaN for rows that could not be scored, higher is worse.
        signals: ``larf_signals``, shape (n, s), float64; NaN if missing.
        states: ``larf_state`` of the k rows that have one, shape (k, d), float16, as stored: a float32 copy would
            double the memory.
        has_state: Whether each row has a state, shape (n,).
    """

    scores: Floats
    signals: Floats
    states: NDArray[np.float16]
    has_state: NDArray[np.bool_]

    @classmethod
    def of(cls, dataset: Dataset) -> "StoredRows":
        """Read the columns of a scored dataset.

        Args:
            dataset: Rows with ``larf_score`` and ``larf_state``; ``larf_signals`` is optional.

        Raises:
            InputError: If scores or states are missing.
        """
        names = [name for name in ("larf_score", "larf_signals", "larf_state") if name in dataset.column_names]
        if "larf_score" not in names or "larf_state" not in names:
            raise InputError(
                f"wanted rows with larf_score and larf_state, got {names}: score them with keep_states "
                "(larf-curate score --keep-states)"
            )
        table = dataset.select_columns(names).with_format("arrow")[:]
        return cls(
            scores=_floats(table["larf_score"]),
            signals=_signals(table["larf_signals"]) if "larf_signals" in names else np.empty((len(table), 0)),
            states=_states(table["larf_state"]),
            has_state=np.asarray(table["larf_state"].is_valid()),
        )


def _signals(column: pa.ChunkedArray) -> Floats:
    names = [field.name for field in column.type]
    # The empty array gives the right number of rows if there are no signals.
    return np.column_stack([_floats(pc.struct_field(column, name)) for name in names] or [np.empty((len(column), 0))])


def _floats(column: pa.ChunkedArray) -> Floats:
    """A column as float64; null becomes NaN."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def _states(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """States of the k rows that have one, shape (k, d), float16."""
    count = int(column.length()) - column.null_count
    parts = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), np.float16) for chunk in column.chunks]
    return np.concatenate(parts).reshape(count, -1) if count else np.empty((0, 0), np.float16)
