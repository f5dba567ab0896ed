"""Score formulas: made from reference states, then pure functions of rows' states; one idea a module."""

from dataclasses import dataclass

from larf_curate.signals.centred import answer_similarity, larf_centred, larf_whitened, unsafe_similarity
from larf_curate.signals.combined import combined, erosion, harmful
from larf_curate.signals.direction import pair_cosine, projection, refusal_direction, subspace
from larf_curate.signals.knn import knn
from larf_curate.signals.larf import larf
from larf_curate.signals.logistic import logistic
from larf_curate.signals.protocol import Fit, ReferenceStates, Signal
from larf_curate.states import Position

__all__ = ["AXES", "DEFAULT_SIGNAL", "SIGNALS", "ReferenceStates", "Signal", "SignalKind"]


@dataclass(frozen=True)
class SignalKind:
    """A signal that a profile can offer; high = bad in all of them.

    Args:
        fit: Makes the signal from reference states.
        positions: The states it reads.
        whole: Whether it is made from reference answers as they are, also where a profile has matched their lengths.
        uses_safe: Whether it compares rows with refusals too.
        experimental: Whether no measured set of rows speaks for it so far.
    """

    fit: Fit
    positions: frozenset[Position]
    whole: bool = False
    uses_safe: bool = False
    experimental: bool = False


def _kind(fit: Fit, *positions: Position, **flags: bool) -> SignalKind:
    return SignalKind(fit, frozenset(positions), **flags)


SIGNALS: dict[str, SignalKind] = {
    "combined": _kind(combined, "last", "prompt", "mean", "length"),
    "harmful": _kind(harmful, "last", "mean", "length"),
    "erosion": _kind(erosion, "prompt", "length"),
    "logistic": _kind(logistic, "last", "prompt", "mean", "length", uses_safe=True, experimental=True),
    "larf": _kind(larf, "last", whole=True, uses_safe=True),
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
AXES = ("harmful", "erosion")
"""What the default signal is made of: how harmful a row is, and how much it erodes refusals."""
