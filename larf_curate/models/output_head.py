"""The linear layer that gives logits, at the last position of a batch."""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from larf_curate.models.hooks import forward_hooks


def contiguous_head(model: Any) -> AbstractContextManager[None]:  # noqa: ANN401  transformers has no types
    """Inside a ``with`` block, the head copies inputs that are a slice of the states.

    `generate` needs logits at the last position of the prompts alone. On a CPU in bfloat16, PyTorch multiplies such a
    slice by one copy of a frozen weight per row: 16 rows take 4 GB with a vocabulary of 152,000, and many times as
    long (pytorch/pytorch#151934). Weights of a merged adapter are frozen.

    Args:
        model: A causal language model of transformers.
    """
    head = model.get_output_embeddings()
    return forward_hooks([], before=[] if head is None else [(head, _copied)])


def _copied(_module: object, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part.contiguous() for part in given)  # none of a head that is called with keywords
