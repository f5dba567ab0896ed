"""Turn a gradient so that a step along it does not go in a harmful direction, and change it as little as possible.

This is no part of the SAP paper. It is the rule for conflicting gradients of PCGrad
(https://arxiv.org/abs/2001.06782, equation 1), with a margin: the cosine between the two gradients does not become 0
where it was negative, but reaches a given value wherever it was lower.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from larf_curate.training.probes import global_norm


@torch.no_grad()
def turn(weights: Sequence[Tensor], direction: Sequence[Tensor], cosine: float) -> Tensor:
    """Raise the cosine between the gradients of weights, all together, and a direction to at least a given one.

    A multiple of the direction is added, in place, so that what is across the direction stays the same.

    Args:
        weights: Weights with gradients; those without get one if a multiple is added.
        direction: One tensor per weight, of its shape; together a unit vector, or zero, which changes nothing.
        cosine: The least cosine, in (-1, 1).

    Returns:
        The cosine before, a scalar; 0 if a gradient is zero.
    """
    pairs = [(w.grad, d) for w, d in zip(weights, direction, strict=True) if w.grad is not None]
    size = global_norm([gradient for gradient, _ in pairs])
    along = torch.stack([(gradient * d).sum().to(size) for gradient, d in pairs]).sum()
    across = (size**2 - along**2).clamp(min=0).sqrt()
    missing = cosine / math.sqrt(1 - cosine**2) * across - along
    if missing > 0:
        for weight, d in zip(weights, direction, strict=True):
            step = missing.to(d) * d
            weight.grad = step if weight.grad is None else weight.grad.add_(step)
    return along / size.clamp(min=torch.finfo(size.dtype).tiny)
