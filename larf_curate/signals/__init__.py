"""Score formulas: each is fitted to reference states once and is then a pure function of rows' states."""

from dataclasses import dataclass

from larf_curate.signals.centred import answer_similarity, larf_centred, larf_whitened, unsafe_similarity
from larf_curate.signals.combined import combined, compliance, erosion, harmful
from larf_curate.signals.direction import pair_cosine, projection, refusal_direction, subspace
from larf_curate.signals.knn import knn
from larf_curate.signals.larf import larf
from larf_curate.signals.logistic import logistic
from larf_curate.signals.protocol import Fit, ReferenceStates, Signal
from larf_curate.states import Position

__all__ = ["AXES", "DEFAULT_SIGNAL", "SIGNALS", "ReferenceStates", "Signal", "SignalKind"]


@dataclass(frozen=True)
class SignalKind:
    """A signal that a profile can offer, and what it needs; higher scores are worse for every signal.

    Args:
        fit: Makes the signal from reference states.
        positions: Positions of the states it reads.
        full_answers: Whether it is always fitted to the complete reference answers, even in a profile that cuts long
            ones to the length of their counterparts.
        uses_safe: Whether it also compares rows with refusals.
        experimental: Whether no measurement on labelled rows supports it yet.
    """

    fit: Fit
    positions: frozenset[Position]
    full_answers: bool = False
    uses_safe: bool = False
    experimental: bool = False


def _kind(fit: Fit, *positions: Position, **flags: bool) -> SignalKind:
    return SignalKind(fit, frozenset(positions), **flags)


SIGNALS: dict[str, SignalKind] = {
    "combined": _kind(combined, "last", "prompt", "mean", "length", uses_safe=True),
    "harmful": _kind(harmful, "last", "mean", "length"),
    "erosion": _kind(erosion, "prompt"),
    "compliance": _kind(compliance, "mean", uses_safe=True),
    "logistic": _kind(logistic, "last", "prompt", "mean", "length", uses_safe=True, experimental=True),
    # The published score takes references as they are, whatever their lengths, so that it stays comparable.
    "larf": _kind(larf, "last", full_answers=True, uses_safe=True),
    "larf_centred": _kind(larf_centred, "last", uses_safe=True),
    "larf_whitened": _kind(larf_whitened, "last", uses_safe=True, experimental=True),
    "unsafe_similarity": _kind(unsafe_similarity, "last"),
    "answer_similarity": _kind(answer_similarity, "mean"),
    "refusal_direction": _kind(refusal_direction, "prompt"),
    "projection": _kind(projection, "prompt", "mean", uses_safe=True),
    "subspace": _kind(subspace, "last", uses_safe=True),
    "pair_cosine": _kind(pair_cosine, "prompt", "last"),
    "knn": _kind(knn, "last", uses_safe=True),
}
DEFAULT_SIGNAL = "combined"
AXES = ("harmful", "erosion", "compliance")
"""The components of the default signal: how harmful a row's answer is, how much its prompt erodes refusals, and whether
the answer complies at all."""
