"""Likelihood of answers under a causal language model."""

import torch
from torch import Tensor
from torch.nn import functional

from larf_curate.conversation.training_rows import IGNORED


def answer_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's answer: the sum over its tokens, in nats; at most 0.

    Args:
        logits: Logits of a causal language model, shape (rows, tokens, vocabulary).
        labels: Token ids of the answers, `IGNORED` elsewhere, shape (rows, tokens), not shifted.

    Returns:
        Shape (rows,), float32 or wider.
    """
    # The logits at a position predict the next token. Only the answers' positions are converted to float32, which saves
    # the memory of wide logits for whole prompts.
    row, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    chosen = logits[row, position]
    wide = torch.promote_types(chosen.dtype, torch.float32)
    losses = functional.cross_entropy(chosen.to(wide), labels[row, position + 1], reduction="none")
    return -losses.new_zeros(len(labels)).index_add(0, row, losses)
