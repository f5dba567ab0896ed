"""The published LARF score: how much closer a row is to unsafe than to safe exemplars.

Source: Layer-Aware Representation Filtering, https://arxiv.org/abs/2507.18631, the bidirectional score of its second
phase.
"""

from dataclasses import dataclass

import numpy as np

from larf_curate.errors import ReferenceSetError
from larf_curate.signals.protocol import ReferenceStates, Signal, dot, mean_unit, unit
from larf_curate.states import Vectors


def larf(refs: ReferenceStates) -> Signal:
    """The published score of each row's last token, in [-2, 2], higher is closer to unsafe; see `LarfSignal`."""
    signal = LarfSignal(unsafe=refs.unsafe["last"], safe=refs.safe["last"], top_k=refs.top_k)
    return lambda states: signal(states["last"])


@dataclass(frozen=True, kw_only=True, eq=False)
class LarfSignal:
    """Mean over exemplar pairs of the cosine to the unsafe exemplar minus the cosine to the safe one.

    ``score(x) = mean over the top-k pairs i of [cos(x, u_i) - cos(x, s_i)]``; range [-2, 2], higher is closer to
    unsafe. If all pairs count (``top_k`` None, the authors' setting), this equals one dot product per row, and the two
    sides may differ in number. Otherwise only a row's ``top_k`` largest differences count, and exemplar i of one side
    is paired with exemplar i of the other.

    Args:
        unsafe: States of the unsafe exemplars, shape (m, layers, d), m >= 1.
        safe: States of the safe exemplars, shape (k, layers, d), k >= 1; k = m if ``top_k`` is given.
        top_k: Number of pairs that count, from 1 to m; None for all.

    Raises:
        ReferenceSetError: If the shapes do not fit or ``top_k`` is out of range.
    """

    unsafe: Vectors
    safe: Vectors
    top_k: int | None = None

    def __post_init__(self) -> None:
        if min(len(self.unsafe), len(self.safe)) < 1 or self.unsafe.shape[1:] != self.safe.shape[1:]:
            raise ReferenceSetError(
                "wanted at least one unsafe and one safe state, of the same layers and width, got shapes "
                f"{self.unsafe.shape} and {self.safe.shape}: read both sides with one model"
            )
        if self.top_k is None:
            return
        if len(self.unsafe) != len(self.safe):
            raise ReferenceSetError(
                f"top_k needs pairs, got {len(self.unsafe)} unsafe and {len(self.safe)} safe references: "
                "pair them, or count them all (top_k=None)"
            )
        if not 1 <= self.top_k <= len(self.unsafe):
            raise ReferenceSetError(f"wanted top_k from 1 to {len(self.unsafe)}, got {self.top_k}")

    def __call__(self, states: Vectors) -> Vectors:
        """Score states of shape (n, layers, d); returns shape (n, layers)."""
        rows = unit(states)
        if self.top_k is None:
            return dot(rows, mean_unit(self.unsafe) - mean_unit(self.safe))
        # Selecting the largest differences is not linear, so the cosines to every pair are needed.
        pairs = unit(self.unsafe) - unit(self.safe)
        differences = np.einsum("nld,mld->nlm", rows, pairs, optimize=True)
        highest = np.partition(differences, -self.top_k, axis=-1)[..., -self.top_k :]
        return np.asarray(highest.mean(axis=-1))
