"""How much of a state lies in the subspace of unsafe references, less the share in that of safe ones."""

import numpy as np

from larf_curate.signals.geometry import unit
from larf_curate.signals.protocol import ReferenceStates, Signal, Vectors

COMPONENTS = 16


def subspace(refs: ReferenceStates) -> Signal:
    """Share of a state's length in the unsafe subspace less that in the safe one; in [-1, 1], higher is unsafe.

    Source: SAFT, https://arxiv.org/abs/2410.10014, and DataShield, https://arxiv.org/abs/2607.15081: the first 16
    components of an uncentred singular value decomposition of each side.
    """
    unsafe, safe = (_bases(side["last"]) for side in (refs.unsafe, refs.safe))
    return lambda states: _share(unit(states["last"]), unsafe) - _share(unit(states["last"]), safe)


def _bases(side: Vectors) -> list[Vectors]:
    """Orthonormal components of each layer, shape (components, d)."""
    return [np.linalg.svd(side[:, i], full_matrices=False)[2][:COMPONENTS] for i in range(side.shape[1])]


def _share(rows: Vectors, bases: list[Vectors]) -> Vectors:
    return np.stack([np.linalg.norm(rows[:, i] @ basis.T, axis=-1) for i, basis in enumerate(bases)], axis=1)
