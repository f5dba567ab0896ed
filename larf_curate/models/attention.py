"""Attention in float32 where PyTorch's is slow in half precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


class float32_attention(TorchFunctionMode):  # noqa: N801  used as a function
    """Inside a ``with`` block, attention is computed in float32, and its result has the dtype of the query again.

    On CPUs, the backward pass of bfloat16 attention over less than some 200 tokens takes several times as long. On
    other devices nothing changes.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        given = dict(kwargs or {})
        query = args[0] if args else given.get("query")
        if function is not scaled_dot_product_attention or query is None or query.device.type != "cpu":
            return function(*args, **given)
        wide = {name: _float32(value) for name, value in given.items()}
        with torch.autocast("cpu", enabled=False):
            return function(*map(_float32, args), **wide).to(query.dtype)


def _float32(value: Any) -> Any:  # noqa: ANN401
    is_half = isinstance(value, Tensor) and value.is_floating_point() and value.element_size() < 4
    return value.float() if is_half else value
