"""Linear layers that compute a prefix once that all rows of a batch begin with, such as a system message.

With causal attention the states of such a prefix are the same in every row, but their gradients are not: the forward
pass can share them, the backward pass cannot.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D


class _SharedRows(torch.autograd.Function):
    """A frozen linear layer of rows, shape (n, t, d), that are equal in their first tokens."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, prefix: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(weight)
        # One product of two dimensions: others are slow in bfloat16 on CPUs.
        distinct = torch.cat([rows[0, :prefix], rows[:, prefix:].flatten(0, 1)])
        outputs = linear(distinct, weight, bias)
        shared, own = outputs[:prefix].expand(len(rows), -1, -1), outputs[prefix:]
        return torch.cat([shared, own.reshape(len(rows), rows.shape[1] - prefix, own.shape[1])], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        return (grads[0].flatten(0, 1) @ weight).unflatten(0, grads[0].shape[:2]), None, None, None


@contextmanager
def sharing_prefix(blocks: nn.ModuleList, ids: Tensor) -> Iterator[None]:
    """Let the linear layers of frozen blocks compute the rows' common first tokens once.

    Args:
        blocks: Decoder blocks; their results do not change, except by rounding.
        ids: Token ids of the batch that is run, right-padded, shape (n, t).
    """
    prefix = int((ids == ids[0]).all(dim=0).long().cumprod(0).sum())
    with ExitStack() as stack:
        for module in blocks.modules():
            if len(ids) > 1 and prefix and _is_plain(module):
                module.forward = _shared(module, ids.shape, prefix)
                stack.callback(delattr, module, "forward")
        yield


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear layer as PyTorch computes it.

    Others keep their own computation: accelerate's hooks replace the forward method of a module that it has placed on
    a device, and quantised weights are tensors of a class of their own, with products of their own.
    """
    return type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module) and type(module.weight) is nn.Parameter


def _shared(module: nn.Module, shape: torch.Size, prefix: int) -> Any:  # noqa: ANN401
    """The forward method of a linear layer, by `_SharedRows` for inputs with a state per token."""
    original = module.forward
    weight, bias = module.weight.T if isinstance(module, Conv1D) else module.weight, module.bias

    def forward(rows: Tensor) -> Any:  # noqa: ANN401
        if rows.shape[:-1] != shape:
            return original(rows)
        return _SharedRows.apply(rows, weight, bias, prefix)  # type: ignore[no-untyped-call]

    return forward
