"""Signals along one direction a layer, and the cosine between prompt and answer."""

import numpy as np

from larf_curate.signals.protocol import ReferenceStates, Signal, dot, unit
from larf_curate.states import States, Vectors


def refusal_direction(refs: ReferenceStates) -> Signal:
    """Cosine of a row's prompt state, less the neutral mean, to the direction from neutral to harmful prompts.

    Rows whose prompts lie along this direction are those whose compliant answers teach a model not to refuse. The range
    is [-1, 1], higher is closer to what the model refuses. Text without a prompt, among the references too, counts as
    having an ordinary one.

    Source: the difference of means of Arditi et al., https://arxiv.org/abs/2406.11717, as a filter for fine-tuning data
    in https://arxiv.org/abs/2506.07356.
    """
    mean = refs.neutral["prompt"].mean(axis=0)
    direction = unit(refs.unsafe["prompt"].mean(axis=0) - mean)
    return lambda states: dot(unit(states["prompt"] - mean), direction)


def projection(refs: ReferenceStates) -> Signal:
    """Length, along the compliance direction, of what the answer adds to the prompt; unbounded, higher is unsafe.

    Source: DataShield, https://arxiv.org/abs/2606.00160: the mean state over the answer less the last prompt state,
    projected on the same of the unsafe less that of the safe references.
    """
    comply, refuse = (_added(side).mean(axis=0) for side in (refs.unsafe, refs.safe))
    direction = unit(comply - refuse)
    return lambda states: dot(_added(states), direction)


def pair_cosine(_refs: ReferenceStates) -> Signal:
    """Cosine between the prompt's state and the answer's last; in [-1, 1], higher is a compliant answer.

    Source: SRR, https://arxiv.org/abs/2505.15710. It needs no references.
    """
    return lambda states: np.asarray((unit(states["prompt"]) * unit(states["last"])).sum(axis=-1))


def _added(states: States) -> Vectors:
    return states["mean"] - states["prompt"]


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
