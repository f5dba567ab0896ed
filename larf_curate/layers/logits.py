"""Logits at chosen positions: the head, as large as several blocks of a small model, runs for no others."""

from typing import Any

from torch import Tensor

from larf_curate.models.hooks import forward_hooks


def logits_at(model: Any, index: Tensor, **inputs: Any) -> Tensor:  # noqa: ANN401  any model of transformers
    """Run a model, and its head at some positions only.

    Args:
        model: A causal language model.
        index: Flat indices into (rows, tokens), shape (m,).
        inputs: Inputs of the model.

    Returns:
        Logits of shape (m, vocabulary).
    """

    def select(_module: object, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (given[0].flatten(0, 1)[index].unsqueeze(0), *given[1:])

    head = model.get_output_embeddings()
    with forward_hooks([], before=[] if head is None else [(head, select)]):
        logits: Tensor = model(**inputs).logits.flatten(0, 1)
    return logits if len(logits) == len(index) else logits[index]  # of a model that does not call its head
