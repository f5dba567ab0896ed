"""How likely a model finds the answers of a batch."""

import torch
from torch import Tensor
from torch.nn import functional

from larf_curate.conversation.training_rows import IGNORED


def answer_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's answer, summed over its tokens.

    Args:
        logits: Of a causal model, shape (rows, tokens, vocabulary).
        labels: Tokens of the answers, `IGNORED` elsewhere, shape (rows, tokens), not shifted.

    Returns:
        Shape (rows,), float32 or wider.
    """
    row, place = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    chosen = logits[row, place]
    wide = torch.promote_types(chosen.dtype, torch.float32)
    losses = functional.cross_entropy(chosen.to(wide), labels[row, place + 1], reduction="none")
    return -losses.new_zeros(len(labels)).index_add(0, row, losses)
