"""Configuration of `SapTrainer`, and the LoRA configuration of the SAP authors' code."""

from dataclasses import dataclass, field
from typing import Any

from larf_curate.errors import InputError
from larf_curate.extras import require
from larf_curate.training.choices import PROBE_STEPS, REFUSALS

for _module in ("accelerate", "peft", "trl"):
    require(_module, extra="train")

from peft import LoraConfig  # noqa: E402  after the check that they are installed
from trl import SFTConfig  # noqa: E402

LORA_TARGETS = ("q_proj", "v_proj")


def sap_lora() -> LoraConfig:
    """LoRA configuration of the SAP authors' code: rank 8 on the query and value projections, dropout 0.1."""
    return LoraConfig(r=8, target_modules=list(LORA_TARGETS), lora_dropout=0.1, task_type="CAUSAL_LM")


@dataclass
class SapConfig(SFTConfig):  # type: ignore[misc]  # trl has no types
    """Configuration of `SapTrainer`; extends ``trl.SFTConfig``.

    These defaults differ from ``SFTConfig``: ``learning_rate`` is 1e-4 (the authors' code) and ``bf16`` is False,
    because an ``epsilon`` of 2e-5 is below the resolution of bfloat16, where the probes would follow rounding noise.
    With bf16, set ``epsilon`` to about 0.002: only the direction of the difference matters, not its size.

    Args:
        epsilon: Distance by which the weights are moved in the harmful direction, in units of their norm; 0 for no
            probes.
        beta: Size of the probe step; 0 for no probes.
        probe_step: Step from a gradient to a probe: ``sign`` or ``unit``.
        probe_blocks: Decoder blocks with a probe: ``auto``, a range ``11-20``, a list ``3,9`` or block numbers.
        safe_cosine: Least cosine between g and the gradient that the optimizer follows, in [-1, 1); a gradient with a
            lower one is turned by as little as possible (`turn`). -1 turns none, as in the paper.
        temperature: Temperature of the contrastive loss. The higher, the more equally contrastive rows are weighted; at
            1 the row whose refusal is least certain outweighs the others.
        refusals: Refusals that the unsafe answers are contrasted with: ``given``, those of the references, or ``own``,
            those of the model.
        contrastive_batch_size: Number of contrastive rows per step and process.
        contrastive_max_length: Longest contrastive row in tokens.
        learning_rate: Initial learning rate.
        bf16: Whether to compute in bfloat16.
    """

    epsilon: float = field(
        default=2e-5,
        metadata={
            "help": "Distance by which the weights are moved in the harmful direction, in units of their norm. "
            "Source: grad_rate of the SAP authors' code."
        },
    )
    beta: float = field(
        default=0.05,
        metadata={"help": "Size of the probe step. Source: v_lr of the SAP authors' code, beta of the paper."},
    )
    probe_step: str = field(
        default="sign",
        metadata={
            "help": "Step from a gradient to a probe: 'sign' moves every coordinate by beta, as the first AdamW step "
            "of the SAP authors' code does; 'unit' moves all probes together by a Euclidean norm of beta.",
            "choices": list(PROBE_STEPS),
        },
    )
    probe_blocks: str | list[int] = field(
        default="auto",
        metadata={
            "help": "Decoder blocks (0-based) with a probe: 'auto' for the middle third (blocks 11 to 20 of 32 "
            "in the paper), a range '11-20', a list '3,9' (the SAP authors' code), or the layers of a LayerReport."
        },
    )
    safe_cosine: float = field(
        default=-1.0,
        metadata={
            "help": "Least cosine between the gradient of the safety loss and the gradient that the optimizer follows, "
            "which is turned if its own is lower; with beta=0 in place of probes. -1, as in the paper: none is turned."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Temperature of the contrastive loss; the higher, the more equally contrastive rows are weighted. "
            "Source: the SAP authors' code."
        },
    )
    refusals: str = field(
        default="given",
        metadata={
            "help": "Refusals that the unsafe answers are contrasted with: 'given', those of the references, or "
            "'own', the greedy answers with which the model itself refuses their prompts before training.",
            "choices": list(REFUSALS),
        },
    )
    contrastive_batch_size: int = field(
        default=8,
        metadata={"help": "Number of contrastive rows per step and process. Source: the SAP authors' code."},
    )
    contrastive_max_length: int = field(
        default=256,
        metadata={"help": "Longest contrastive row in tokens. Source: the SAP authors' code."},
    )
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Initial learning rate. Source: w_lr of the SAP authors' code."}
    )
    bf16: bool | None = field(
        default=False,
        metadata={
            "help": "Whether to compute in bfloat16; then set epsilon to about 0.002: 2e-5 is below its resolution."
        },
    )

    def __post_init__(self) -> None:
        """Validate the options.

        Raises:
            InputError: If one is out of range, or fp16 or reentrant checkpointing is requested.
        """
        check_step(self)
        for name in ("temperature", "contrastive_max_length"):
            if not getattr(self, name) > 0:
                raise InputError(f"wanted {name} > 0, got {getattr(self, name)}")
        if self.fp16:
            raise InputError("SAP does not support fp16, in which small gradients underflow: use bf16=True or float32")
        if getattr(self, "activation_checkpointing", True) is None:
            # trl 1.16 sets gradient_checkpointing by default, the old name, and transformers 5.23 warns of it
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()
        if (self.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise InputError("SAP needs gradients of the probes: set use_reentrant=False for activation checkpointing")


def check_step(options: Any) -> None:  # noqa: ANN401  a `SapConfig` or a recipe
    """Validate the options of a SAP step.

    Raises:
        InputError: If one is out of range.
    """
    for name in ("epsilon", "beta"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise InputError(f"wanted {name} >= 0, got {getattr(options, name)}: 0 for no probes")
    if not -1 <= options.safe_cosine < 1:
        raise InputError(f"wanted safe_cosine from -1 to below 1, got {options.safe_cosine}: -1 turns no gradient")
    if not options.contrastive_batch_size > 0:
        raise InputError(f"wanted contrastive_batch_size > 0, got {options.contrastive_batch_size}")
    for name, choices in (("probe_step", PROBE_STEPS), ("refusals", REFUSALS)):
        if getattr(options, name) not in choices:
            raise InputError(f"wanted {name} {' or '.join(map(repr, choices))}, got {getattr(options, name)!r}")
