"""Probes of SAP: vectors added to the residual stream after decoder blocks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from larf_curate.errors import InputError
from larf_curate.models.hooks import Hook, forward_hooks


def probe_blocks(spec: str | Sequence[int] | Sequence[str], count: int) -> list[int]:
    """Parse which decoder blocks get a probe.

    Args:
        spec: ``auto`` for the middle third (blocks 11 to 20 of 32, as in the SAP paper), an inclusive range ``11-20``,
            a list ``3,9``, or block numbers.
        count: Number of decoder blocks of the model.

    Returns:
        0-based block numbers, ascending, without duplicates.

    Raises:
        InputError: If it cannot be parsed, is empty, or names a block that the model does not have.
    """
    parts = spec.split(",") if isinstance(spec, str) else [str(part) for part in spec]
    if parts == ["auto"]:
        start = round(count / 3)
        return list(range(start, max(round(2 * count / 3), start + 1)))
    blocks = sorted({block for part in parts for block in _span(part.strip())})
    if not blocks or blocks[0] < 0 or blocks[-1] >= count:
        raise InputError(f"probe_blocks={spec!r}: wanted blocks of 0 to {count - 1}, auto, a list or a range 11-20")
    return blocks


@contextmanager
def added_probes(blocks: Mapping[int, nn.Module], probes: Mapping[int, Tensor]) -> Iterator[None]:
    """Add a vector to the output of each block at every position of every row; the hooks are always removed.

    Args:
        blocks: Decoder blocks by number.
        probes: Vectors of shape (d,) by block number; cast to the dtype of the hidden states.
    """
    with forward_hooks((blocks[number], _adding(probe)) for number, probe in probes.items()):
        yield


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, as if concatenated; float32 or wider, on the device of the first one."""
    norms = [torch.linalg.vector_norm(t, dtype=_wide(t)).to(tensors[0].device) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


@contextmanager
def shifted_weights(weights: Sequence[Tensor], direction: Sequence[Tensor], distance: Tensor) -> Iterator[None]:
    """Move weights by ``distance`` along ``direction``, and restore them bit for bit on exit.

    Needs memory for one copy of the weights.

    Args:
        weights: Weights, changed in place.
        direction: One tensor per weight, of its shape; together a unit vector.
        distance: Length of the move, a scalar.
    """
    # Subtracting the move again would leave rounding errors, which accumulate over the steps.
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, step in zip(weights, direction, strict=True):
                weight.add_((distance.to(step.device) * step).to(weight.dtype))
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


@contextmanager
def frozen(weights: Sequence[Tensor]) -> Iterator[None]:
    """Compute no gradients of trainable weights, so that passes that do not need them keep nothing for them."""
    for weight in weights:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def _span(part: str) -> range:
    """The blocks of a number or of an inclusive range."""
    first, dash, last = part.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise InputError(f"probe_blocks: {part!r} is neither a block number nor a range like 11-20, nor auto")
    return range(int(first), int(last if dash else first) + 1)


def _adding(probe: Tensor) -> Hook:
    """A forward hook that adds a probe to a block's hidden states."""

    def add(_module: nn.Module, _inputs: object, output: Any) -> Any:  # noqa: ANN401  tensor or tuple, depending on the block
        if isinstance(output, tuple):
            return (output[0] + probe.to(output[0].dtype), *output[1:])
        return output + probe.to(output.dtype)

    return add


def _wide(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, at least float32: sums of squares overflow in float16 and are coarse in bfloat16."""
    return torch.promote_types(tensor.dtype, torch.float32)
