"""Signals along one direction or subspace per layer, and the cosine between prompt and answer."""

import numpy as np

from larf_curate.signals.protocol import ReferenceStates, Signal, dot, unit
from larf_curate.states import States, Vectors

COMPONENTS = 16
"""Dimension of each side's subspace in `subspace`."""


def refusal_direction(refs: ReferenceStates) -> Signal:
    """Cosine of the centred prompt state to the direction from neutral to harmful prompts; in [-1, 1].

    ``cos(p - m, mean_i u_i - m)`` with p and u_i the last token's states of the prompts and m the mean of neutral
    prompts. Higher is closer to what the model refuses: a compliant answer to such a prompt teaches it not to refuse.
    Texts without a prompt, references included, are given the mean prompt state of neutral rows.

    Source: the difference of means of Arditi et al., https://arxiv.org/abs/2406.11717, used as a filter for fine-tuning
    data in https://arxiv.org/abs/2506.07356.
    """
    mean = refs.neutral["prompt"].mean(axis=0)
    direction = unit(refs.unsafe["prompt"].mean(axis=0) - mean)
    return lambda states: dot(unit(states["prompt"] - mean), direction)


def projection(refs: ReferenceStates) -> Signal:
    """Projection of the answer's shift from its prompt on the compliance direction; unbounded, higher is unsafe.

    The shift is the mean state over the answer's tokens minus the prompt's last state; the direction is the unit vector
    from the mean shift of the safe references to that of the unsafe ones.

    Source: the first of two methods named DataShield, https://arxiv.org/abs/2606.00160; `subspace` is the other.
    """
    comply, refuse = (_answer_shift(side).mean(axis=0) for side in (refs.unsafe, refs.safe))
    direction = unit(comply - refuse)
    return lambda states: dot(_answer_shift(states), direction)


def pair_cosine(_refs: ReferenceStates) -> Signal:
    """Cosine between the last states of prompt and answer; in [-1, 1], higher means that the answer complies.

    References are not used. Source: SRR, https://arxiv.org/abs/2505.15710.
    """
    return lambda states: np.asarray((unit(states["prompt"]) * unit(states["last"])).sum(axis=-1))


def _answer_shift(states: States) -> Vectors:
    return states["mean"] - states["prompt"]


def subspace(refs: ReferenceStates) -> Signal:
    """Relative norm in the unsafe subspace minus that in the safe one; in [-1, 1], higher is unsafe.

    ``|P_unsafe x| / |x| - |P_safe x| / |x|``, each P projecting on the first 16 right singular vectors of one side's
    states, not centred.

    Source: SAFT, https://arxiv.org/abs/2410.10014, and the second of two methods named DataShield,
    https://arxiv.org/abs/2607.15081; `projection` is the other.
    """
    unsafe, safe = (_bases(side["last"]) for side in (refs.unsafe, refs.safe))
    return lambda states: _projected_norm(unit(states["last"]), unsafe) - _projected_norm(unit(states["last"]), safe)


def _bases(side: Vectors) -> list[Vectors]:
    """Orthonormal basis of each layer's subspace, each of shape (components, d).

    Fewer rows than `COMPONENTS` give as many components as there are rows.
    """
    return [np.linalg.svd(side[:, i], full_matrices=False)[2][:COMPONENTS] for i in range(side.shape[1])]


def _projected_norm(rows: Vectors, bases: list[Vectors]) -> Vectors:
    """Norm of the rows' projections on the subspace of each layer, shape (n, layers)."""
    return np.stack([np.linalg.norm(rows[:, i] @ basis.T, axis=-1) for i, basis in enumerate(bases)], axis=1)
