"""Stored scores and states used for re-ranking: those of scored rows and of a profile's references."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.columns import SCORE, STATE
from larf_curate.errors import InputError

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile

SIGNALS = "larf_signals"
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
    def of(cls, dataset: Dataset, *, need_states: bool = True) -> "StoredRows":
        """Read the columns of a scored dataset.

        Args:
            dataset: Rows with ``larf_score`` and ``larf_state``; ``larf_signals`` is optional.
            need_states: Whether states must be there.

        Raises:
            InputError: If scores or states are missing.
        """
        names = [name for name in (SCORE, SIGNALS, STATE) if name in dataset.column_names]
        if SCORE not in names or (STATE not in names and need_states):
            raise InputError(
                f"wanted rows with larf_score and larf_state, got {names}: score them with keep_states "
                "(larf-curate score --keep-states)"
            )
        return cls.of_table(dataset.select_columns(names).with_format("arrow")[:], signal_names(dataset))

    @classmethod
    def of_table(cls, table: pa.Table, signals: Sequence[str]) -> "StoredRows":
        """Read the columns of a table.

        Args:
            table: Rows with ``larf_score``; ``larf_state`` and ``larf_signals`` are optional.
            signals: Names of the signals; those that the table lacks are NaN.
        """
        stored = STATE in table.column_names
        return cls(
            scores=_floats(table[SCORE]),
            signals=_signals(table, signals),
            states=_states(table[STATE]) if stored else np.empty((0, 0), np.float16),
            has_state=np.asarray(table[STATE].is_valid()) if stored else np.zeros(len(table), bool),
        )

    def followed_by(self, others: "StoredRows") -> "StoredRows":
        """These rows and then others with the same signals.

        Raises:
            InputError: If their states have another width.
        """
        widths = {rows.states.shape[1] for rows in (self, others) if len(rows.states)}
        if len(widths) > 1:
            raise InputError(
                f"wanted states of width {self.states.shape[1]}, got {others.states.shape[1]}: another model scored "
                "the rows of these decisions"
            )
        states = [rows.states for rows in (self, others) if len(rows.states)] or [self.states]
        return StoredRows(
            scores=np.concatenate([self.scores, others.scores]),
            signals=np.concatenate([self.signals, others.signals]),
            states=np.concatenate(states),
            has_state=np.concatenate([self.has_state, others.has_state]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class DecidedRows:
    """Rows of other datasets that people decided, which the same profile scored.

    Args:
        rows: The m rows.
        positive: Whether each was decided to be removed or edited, shape (m,).
    """

    rows: StoredRows
    positive: NDArray[np.bool_]


def signal_names(dataset: Dataset) -> tuple[str, ...]:
    """Names of the signals of scored rows, in the order of `StoredRows.signals`."""
    return tuple(dataset.features[SIGNALS]) if SIGNALS in dataset.column_names else ()


def _signals(table: pa.Table, names: Sequence[str]) -> Floats:
    column = table[SIGNALS] if SIGNALS in table.column_names else None
    present = set() if column is None else {field.name for field in column.type}
    missing = np.full(len(table), np.nan)
    columns = [_floats(pc.struct_field(column, name)) if name in present else missing for name in names]
    # The empty array gives the right number of rows if there are no signals.
    return np.column_stack(columns or [np.empty((len(table), 0))])


def _floats(column: pa.ChunkedArray) -> Floats:
    """A column as float64; null becomes NaN."""
    return np.asarray(column.cast(pa.float64()).to_numpy(), np.float64)


def _states(column: pa.ChunkedArray) -> NDArray[np.float16]:
    """States of the k rows that have one, shape (k, d), float16."""
    count = int(column.length()) - column.null_count
    parts = [np.asarray(chunk.flatten().to_numpy(zero_copy_only=False), np.float16) for chunk in column.chunks]
    return np.concatenate(parts).reshape(count, -1) if count else np.empty((0, 0), np.float16)
