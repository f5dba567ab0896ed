"""How the log-odds of a refusal react to the scale of each block, from one forward and one backward pass.

Scaling the weights of a linear layer by ``alpha`` scales its output without the bias, so the derivative by ``alpha`` at
1 is the inner product of that output and its gradient: no gradient of a weight is needed, and every prompt has its own.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from larf_curate.errors import ModelError
from larf_curate.layers.openings import Openings
from larf_curate.layers.replay import batched, last_logits
from larf_curate.layers.subject import Subject
from larf_curate.models.blocks import projection_modules
from larf_curate.models.hooks import forward_hooks
from larf_curate.stats import Floats

BATCH_TOKENS = 256
"""Larger batches are no faster on a CPU; the memory for the way back grows with them."""


def block_gradients(subject: Subject, prompts: Sequence[list[int]], openings: Openings) -> Floats:
    """Derivative of every prompt's log-odds of a refusal by the scale of every block, at scale 1.

    Args:
        subject: The model, at rest.
        prompts: Token ids of n prompts.
        openings: What the log-odds are of.

    Returns:
        Shape (blocks, n); positive = scaling the block up makes the prompt refused more.

    Raises:
        ModelError: If a block has experts, whose outputs do not keep the prompts apart.
    """
    texts = openings.extend(prompts)
    gradients = np.zeros((len(subject.blocks), len(texts)))
    for batch in tqdm(list(batched(texts, [], BATCH_TOKENS, subject.device)), desc="refusals", unit="batch"):
        rows = [texts[row] for row in batch.rows]
        gradients[:, batch.rows] = _gradients(subject, rows, openings).double().cpu().numpy()
    return gradients


def _gradients(subject: Subject, texts: Sequence[list[int]], openings: Openings) -> Tensor:
    """One right-padded batch. No mask: with causal attention no token sees the padding behind it."""
    lengths = [len(text) for text in texts]
    width, keep = max(lengths), max(lengths) - min(lengths) + openings.positions
    ids = pad_sequence([torch.tensor(text) for text in texts], batch_first=True).to(subject.device)
    total = torch.zeros(len(subject.blocks), len(texts), device=subject.device)
    with torch.enable_grad(), _watched(subject, total):
        logits = subject.model(input_ids=ids, use_cache=False, **last_logits(subject.model, keep)).logits[:, -keep:]
        ends = [length - width + keep for length in lengths]
        read = torch.stack([row[end - openings.positions : end] for row, end in zip(logits, ends, strict=True)])
        openings.log_odds(read).sum().backward()  # type: ignore[no-untyped-call]
    return total


@contextmanager
def _watched(subject: Subject, total: Tensor) -> Iterator[None]:
    """Add the derivative by each block's scale to ``total``, shape (blocks, rows), while gradients flow back."""

    def watch(block: int) -> Any:  # noqa: ANN401
        def hook(module: nn.Module, _inputs: object, output: Tensor) -> None:
            if not isinstance(output, Tensor) or output.ndim != 3 or len(output) != total.shape[1]:
                raise ModelError(
                    f"the outputs of {type(module).__name__} do not keep prompts apart, as where there are experts: "
                    "use method='forward'"
                )
            bias = getattr(module, "bias", None)
            product = output.detach().clone() if bias is None else output.detach() - bias  # Falcon adds in place

            def add(grad: Tensor) -> None:
                total[block] += (grad.float() * product.float()).flatten(1).sum(1)

            output.register_hook(add)  # type: ignore[no-untyped-call]

        return hook

    embeddings = subject.model.get_input_embeddings()
    hooks = [(embeddings, lambda _module, _inputs, output: output.requires_grad_(True))]
    for block, module in enumerate(subject.blocks):
        hooks += [(projection, watch(block)) for projection in projection_modules(module).values()]
    with forward_hooks(hooks):
        yield
