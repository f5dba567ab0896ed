"""Margins of contrastive rows: how much more probable the model finds the safe answer than the unsafe one."""

import inspect
import logging
from typing import Any

import torch
from torch import Tensor

from larf_curate.training.contrastive import Batch, ContrastiveRows

logger = logging.getLogger(__name__)


class Margins:
    """Computes log p(safe answer) - log p(unsafe answer) of contrastive rows, with gradients.

    Both answers follow their prompt in one sequence (`ContrastiveRows.pairs`), so that it is computed only once, if the
    model's attention takes a mask of its own for every pair of tokens. On the first rows this is compared with separate
    sequences, which are used if the two differ.

    Args:
        rows: The contrastive rows.
        bf16: Whether the model computes in bfloat16, whatever the dtype of its weights.
    """

    def __init__(self, rows: ContrastiveRows, *, bf16: bool = False) -> None:
        self._rows, self._bf16 = rows, bf16
        self._in_pairs: bool | None = None

    def __call__(self, model: Any, rows: list[int]) -> Tensor:  # noqa: ANN401  transformers has no types
        """The margins of rows, in nats, shape (rows,).

        Args:
            model: A model with the fused head of TRL.
            rows: Row numbers.
        """
        if self._in_pairs is None:
            self._in_pairs = _takes_masks(model, self._rows.longest) and self._agree(model, rows)
        return self._together(model, rows) if self._in_pairs else self._apart(model, rows)

    def _together(self, model: Any, rows: list[int]) -> Tensor:  # noqa: ANN401
        batch = self._rows.pairs(rows)
        sides = batch.pop("sides")[:, 1:].to(model.device)
        if model.config._attn_implementation == "eager":  # adds the mask to the attention's logits
            batch["attention_mask"] = _added(batch["attention_mask"], model.dtype)
        return (sides * _log_probs(model, batch)).sum(1)

    def _apart(self, model: Any, rows: list[int]) -> Tensor:  # noqa: ANN401
        safe, unsafe = (_log_probs(model, side).sum(1) for side in self._rows.sides(rows))
        return safe - unsafe

    @torch.no_grad()
    def _agree(self, model: Any, rows: list[int]) -> bool:  # noqa: ANN401
        """Whether both ways give the same margins, up to rounding."""
        training = model.training
        model.eval()  # dropout would draw other masks
        try:
            together, apart = self._together(model, rows), self._apart(model, rows)
        except (RuntimeError, TypeError, ValueError) as error:
            logger.info("contrastive rows are computed answer by answer: %s", error)
            return False
        finally:
            model.train(training)
        # The errors of single tokens add up; without the mask, margins differ by several nats.
        resolution = torch.finfo(torch.bfloat16 if self._bf16 else model.dtype).eps
        tolerance = min(100 * resolution, 0.03)
        return torch.allclose(together, apart, rtol=tolerance, atol=tolerance * float(apart.abs().max().clamp(min=10)))


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add to the logits of attention."""
    return torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _log_probs(model: Any, batch: Batch) -> Tensor:  # noqa: ANN401
    """Log-probability of each token that has a label, otherwise 0, shape (rows, tokens - 1)."""
    on_device = {name: value.to(model.device) for name, value in batch.items()}
    log_probs: Tensor = model(**on_device, use_cache=False, fused_lm_head=True).log_probs
    return log_probs


def _takes_masks(model: Any, longest: int) -> bool:  # noqa: ANN401
    """Whether the model's attention can be given positions and a mask of every pair of tokens.

    Args:
        model: The model.
        longest: Length of the longest row in tokens: the mask takes the place of a sliding window, which must hold it.
    """
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return (
        model.config._attn_implementation in ("sdpa", "eager")
        and (getattr(text, "sliding_window", None) or longest) >= longest
        and kinds <= {"full_attention", "sliding_attention"}
        and "position_ids" in inspect.signature(type(base.base_model).forward).parameters
    )
