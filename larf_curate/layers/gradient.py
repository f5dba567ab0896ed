"""Derivative of the log-odds of a refusal with respect to each block's scale, by one forward and one backward pass.

Scaling the weights of a linear layer by ``alpha`` scales its output without the bias. The derivative with respect to
``alpha`` at 1 is therefore the inner product of that output and its gradient: weight gradients are not needed, and each
prompt gets a derivative of its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from larf_curate.errors import ModelError
from larf_curate.layers.logits import logits_at
from larf_curate.layers.openings import Openings
from larf_curate.layers.replay import batched
from larf_curate.layers.shared_prefix import sharing_prefix
from larf_curate.layers.subject import Subject
from larf_curate.models.attention import float32_attention
from larf_curate.models.blocks import projection_modules
from larf_curate.models.hooks import forward_hooks
from larf_curate.progress import progress
from larf_curate.stats import Floats

BATCH_TOKENS = 512
"""Tokens per batch: larger ones are no faster on a CPU, and the backward pass needs memory in proportion."""


def block_gradients(subject: Subject, prompts: Sequence[list[int]], openings: Openings) -> Floats:
    """Derivative of each prompt's log-odds of a refusal with respect to the scale of each block, at scale 1.

    Args:
        subject: The model, frozen.
        prompts: Token ids of n prompts.
        openings: Tokens that define the log-odds.

    Returns:
        Shape (blocks, n); positive if scaling the block up makes a refusal of the prompt more likely.

    Raises:
        ModelError: If a block has experts, whose outputs mix the tokens of several prompts.
    """
    texts = openings.extend(prompts)
    gradients = np.zeros((len(subject.blocks), len(texts)))
    for batch in progress(list(batched(texts, [], BATCH_TOKENS, subject.device)), label="Gradients", unit="batch"):
        rows = [texts[row] for row in batch.rows]
        gradients[:, batch.rows] = _gradients(subject, rows, openings).double().cpu().numpy()
    return gradients


def _gradients(subject: Subject, texts: Sequence[list[int]], openings: Openings) -> Tensor:
    """Run one right-padded batch. It needs no mask: with causal attention no token attends to later padding."""
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(subject.device)
    starts = [row * ids.shape[1] + len(text) - openings.positions for row, text in enumerate(texts)]
    index = torch.tensor(starts, device=ids.device).unsqueeze(1) + torch.arange(openings.positions, device=ids.device)
    total = torch.zeros(len(subject.blocks), len(texts), device=subject.device)
    with torch.enable_grad(), float32_attention(), sharing_prefix(subject.blocks, ids), _accumulating(subject, total):
        logits = logits_at(subject.model, index.flatten(), input_ids=ids, use_cache=False)
        openings.log_odds(logits.unflatten(0, index.shape)).sum().backward()  # type: ignore[no-untyped-call]
    return total


@contextmanager
def _accumulating(subject: Subject, total: Tensor) -> Iterator[None]:
    """Add the derivative for each block's scale to ``total``, shape (blocks, rows), during the backward pass."""

    def accumulate(block: int) -> Any:  # noqa: ANN401
        def hook(module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not isinstance(output, Tensor) or output.ndim != 3 or len(output) != total.shape[1]:
                raise ModelError(
                    f"the outputs of {type(module).__name__} mix several prompts, as those of experts do: "
                    "use method='forward'"
                )
            bias = getattr(module, "bias", None)
            # A copy in any case: Falcon adds to this output in place afterwards.
            product = output.detach().clone() if bias is None else output.detach() - bias

            def add(grad: Tensor) -> None:
                total[block] += (grad.float() * product.float()).flatten(1).sum(1)

            output.register_hook(add)  # type: ignore[no-untyped-call]

        return hook

    # No weight requires a gradient, so the graph has to start at the embeddings' output.
    embeddings = subject.model.get_input_embeddings()
    hooks = [(embeddings, lambda _module, _inputs, output: output.requires_grad_(True))]
    for block, module in enumerate(subject.blocks):
        hooks += [(projection, accumulate(block)) for projection in projection_modules(module).values()]
    with forward_hooks(hooks):
        yield
