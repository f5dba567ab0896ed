"""Hyperparameters of fine-tuning."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pydantic import ConfigDict

from larf_curate.errors import InputError
from larf_curate.records import STRICT
from larf_curate.training.choices import OPTIMIZERS, SAP_FIELDS, TRAINING_DTYPES, TRAINING_METHODS
from larf_curate.training.sap_config import check_step

EQUIVALENT = ("micro_batch_size", "gradient_checkpointing")
"""Fields of a recipe that change a result by rounding only, so that they may change when a run is resumed."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder block in most architectures; names that a model does not have are skipped."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of fine-tuning; the same recipe, initial model, rows and seed give the same weights.

    The defaults are mild: on a small model, clean rows cost some refusals, with little variance between seeds.

    Args:
        method: ``sft`` or ``sap``.
        lora_rank: Rank of the LoRA; 0 trains all weights.
        lora_alpha: Scale of the LoRA.
        lora_targets: Layers with a LoRA, as suffixes of their names.
        learning_rate: Initial learning rate, with linear decay.
        epochs: Number of passes over the rows.
        max_steps: Largest number of optimizer steps, for a trial; 0 for no limit.
        batch_size: Number of rows per optimizer step, over all processes.
        micro_batch_size: Number of rows per forward pass and process; must divide the batch size. 0 chooses it: at most
            16 on an accelerator, and on a CPU as many as have 256 tokens together, by the longest row.
        warmup: Share of the steps over which the learning rate rises, in [0, 1).
        max_length: Longest row in tokens.
        dtype: Dtype of the loaded weights.
        bf16: Whether to compute in bfloat16.
        optimizer: ``adamw_torch_fused``, ``adamw_torch``, ``adafactor`` or ``sgd``.
        gradient_checkpointing: Whether to compute the states within blocks again in the backward pass instead of
            keeping them: less memory, up to half more time, the same result.
        epsilon: SAP only; see `SapConfig`.
        beta: SAP only; see `SapConfig`.
        safe_cosine: SAP only; see `SapConfig`.
        probe_step: SAP only; see `SapConfig`.
        probe_blocks: SAP only; see `SapConfig`.
        refusals: SAP only; see `SapConfig`. The default here is ``own``, which kept more refusals in a comparison.
        contrastive_batch_size: SAP only; see `SapConfig`.

    Raises:
        InputError: If a value is out of range.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    method: str = "sft"
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_targets: tuple[str, ...] = PROJECTIONS
    learning_rate: float = 2e-4
    epochs: float = 2
    max_steps: int = 0
    batch_size: int = 16
    micro_batch_size: int = 0
    warmup: float = 0.1
    max_length: int = 1024
    dtype: str = "float32"
    bf16: bool = False
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False
    epsilon: float = 2e-5
    beta: float = 0.05
    safe_cosine: float = -1.0
    probe_step: str = "sign"
    probe_blocks: str = "auto"
    refusals: str = "own"
    contrastive_batch_size: int = 8

    def __post_init__(self) -> None:
        if self.method not in TRAINING_METHODS:
            raise InputError(f"wanted the method {' or '.join(TRAINING_METHODS)}, got {self.method!r}")
        for name in ("learning_rate", "epochs", "lora_alpha", "batch_size", "max_length"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"wanted a {name} above 0, got {getattr(self, name)}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"wanted the optimizer {' or '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.max_steps < 0:
            raise InputError(f"wanted max_steps of at least 0, got {self.max_steps}: 0 sets no limit")
        if self.micro_batch_size < 0:
            raise InputError(f"wanted a micro_batch_size of at least 0, got {self.micro_batch_size}: 0 chooses it")
        if self.lora_rank < 0:
            raise InputError(f"wanted a lora_rank of at least 0, got {self.lora_rank}: 0 trains all weights")
        if self.dtype not in TRAINING_DTYPES:
            raise InputError(f"wanted the dtype {' or '.join(TRAINING_DTYPES)}, got {self.dtype!r}")
        check_step(self)
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise InputError(
                f"wanted a batch size that the micro-batch size divides, got {self.batch_size} and "
                f"{self.micro_batch_size}: change one"
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe as JSON values."""
        return {**asdict(self), "lora_targets": list(self.lora_targets)}

    @classmethod
    def identity(cls, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """What a recorded recipe has to have in common with another for the same results, up to rounding.

        Fields that an earlier version did not record have their defaults, as have those of SAP in another method.
        """
        recipe = cls(**{**recorded, "lora_targets": tuple(recorded["lora_targets"])}).to_dict()
        unused = EQUIVALENT if recipe["method"] == "sap" else (*EQUIVALENT, *SAP_FIELDS)
        return {name: value for name, value in recipe.items() if name not in unused}
