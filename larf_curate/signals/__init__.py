"""Score formulas: pure functions of hidden states, one module each."""

from collections.abc import Callable
from dataclasses import dataclass

from larf_curate.hidden_states import Position, States, Vectors
from larf_curate.signals.larf import LarfSignal

Signal = Callable[[States], Vectors]
"""Scores states of t turns; returns shape (t, layers), float32, high = bad."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceStates:
    """States of the references, each of shape (n, layers, d), float32, by position.

    Args:
        unsafe: Of the compliant answers to harmful prompts.
        safe: Of the refusals.
    """

    unsafe: States
    safe: States


@dataclass(frozen=True, kw_only=True)
class SignalKind:
    """A signal that a profile can offer.

    Args:
        positions: The states it reads.
        fit: Makes the signal from reference states and a number of neighbours (None for all).
    """

    positions: frozenset[Position]
    fit: Callable[[ReferenceStates, int | None], Signal]


def _fit_larf(states: ReferenceStates, top_k: int | None) -> Signal:
    signal = LarfSignal(unsafe=states.unsafe["last"], safe=states.safe["last"], top_k=top_k)
    return lambda turns: signal(turns["last"])


SIGNALS: dict[str, SignalKind] = {"larf": SignalKind(positions=frozenset({"last"}), fit=_fit_larf)}
