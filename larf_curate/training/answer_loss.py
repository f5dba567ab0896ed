"""A trainer that computes logits of learned positions only, with the losses and gradients of ``trl.SFTTrainer``."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from larf_curate.conversation.training_rows import IGNORED
from larf_curate.models.attention import float32_attention
from larf_curate.models.likelihood import AnswerHead
from larf_curate.training.sap_config import SapConfig  # noqa: F401  its import checks that these are installed

# isort: split
from accelerate.utils import DistributedType
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
"""Kinds of training in which no process holds all weights."""
TENSORS = {"input_ids", "attention_mask", "labels"}
"""What a batch of text holds."""


class AnswerLossTrainer(SFTTrainer):  # type: ignore[misc]  # trl has no types
    """``trl.SFTTrainer`` without logits of positions that are not learned, and with little padding.

    Where TRL has no GPU kernel, it computes the logits of all positions, in tiles of 512 MB; here a few learned
    positions have logits at a time. On GPUs, with sharded weights and for models whose loss has a part that is not in
    the logits (such as the balance of experts), TRL's own computation remains. Without such a part, the rows of one
    optimizer step are sorted by length into its micro-batches, which changes its gradient by rounding only.

    The arguments are those of ``trl.SFTTrainer``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        super().__init__(*args, **options)
        splits = self.args.device.type not in ("cuda", "xpu") and self.accelerator.distributed_type not in SHARDED
        self._head = add_answer_head(self.model) if splits else None

    def compute_loss_context_manager(self) -> ExitStack:
        """TRL's context of a forward pass, and attention that is fast in bfloat16 on CPUs.

        What gradient checkpointing computes again runs outside of it, and has to be the same.
        """
        stack: ExitStack = super().compute_loss_context_manager()
        if not any(getattr(module, "gradient_checkpointing", False) for module in self.model.modules()):
            stack.enter_context(float32_attention())
        return stack

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch the micro-batches of one optimizer step, their rows sorted by length."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        # Without a number of items each micro-batch is a mean of its own, and so is the loss of its balance of experts.
        if items is None or self.aux_loss_enabled or self.args.pad_to_multiple_of is not None:
            return batches, items
        return sorted_by_length(batches), items


def add_answer_head(model: Any) -> AnswerHead | None:  # noqa: ANN401
    """Replace the fused head that TRL has added to a model by one of learned positions, where `AnswerHead` can.

    Returns:
        That head; None if the model keeps TRL's.
    """
    head = AnswerHead(model)
    if not head.splits:
        return None
    fused = head.model.forward

    def forward(
        self: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        **inputs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        routed = inputs.get("output_router_logits") or getattr(
            self.config.get_text_config(), "output_router_logits", False
        )
        if not fused_lm_head or labels is None or args or routed or inputs.get("shift_labels") is not None:
            options = {"fused_lm_head": True} if fused_lm_head else {}
            return fused(*args, **options, **({} if labels is None else {"labels": labels}), **inputs)
        inputs.pop("use_cache", None)
        return _learned(head, labels, inputs)

    # `generate` validates its arguments against this signature.
    forward.__wrapped__ = type(head.model).forward  # type: ignore[attr-defined]
    head.model.forward = MethodType(forward, head.model)
    return head


def sorted_by_length(batches: list[Any]) -> list[Any]:
    """Sort the rows of some micro-batches by length, the longest first, and cut the padding; sizes stay the same.

    Batches of anything but right-padded text are returned as they are.
    """
    if len(batches) < 2 or not all(isinstance(b, Mapping) and b.keys() == TENSORS for b in batches):
        return batches
    width = max(batch["input_ids"].shape[1] for batch in batches)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    whole = {
        name: torch.cat([functional.pad(b[name], (0, width - b[name].shape[1]), value=fill[name]) for b in batches])
        for name in fill
    }
    lengths = whole["attention_mask"].sum(1)
    if not torch.equal(whole["attention_mask"].bool(), torch.arange(width, device=lengths.device) < lengths[:, None]):
        return batches
    order = lengths.argsort(descending=True, stable=True)
    parts = torch.split(order, [len(batch["input_ids"]) for batch in batches])
    return [{name: whole[name][part, : int(lengths[part].max())] for name in fill} for part in parts]


def _learned(head: AnswerHead, labels: Tensor, inputs: Mapping[str, Any]) -> FusedCausalLMOutput:
    """TRL's output of a fused head: (rows, tokens - 1) each, 0 where nothing is learned."""
    output = head.decode(**inputs)
    mask = labels[:, 1:] != IGNORED
    found = head.predictions(output, output.last_hidden_state[:, :-1][mask], labels[:, 1:][mask])
    log_probs, entropy, is_top1 = (part.new_zeros(mask.shape).masked_scatter(mask, part) for part in found)
    return FusedCausalLMOutput(log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask)
