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
    gradients = [torch.zeros_like(d) if w.grad is None else w.grad for w, d in zip(weights, direction, strict=True)]
    size = global_norm(gradients)
    if size == 0:
        return size
    pairs = list(zip(gradients, direction, strict=True))
    along = torch.stack([(gradient.to(size.dtype) * d).sum().to(size) for gradient, d in pairs]).sum().item()
    # The norm of what is left: a difference of squares has no digits where gradient and direction are nearly opposite.
    left = [torch.linalg.vector_norm(gradient - along * d.to(size.dtype)).to(size) for gradient, d in pairs]
    missing = cosine / math.sqrt(1 - cosine**2) * global_norm(left).item() - along
    if missing > 0:
        for weight, gradient, d in zip(weights, gradients, direction, strict=True):
            weight.grad = gradient.add_(d, alpha=missing)
    return along / size
