"""One recipe for fine-tuning, SFT or SAP, from a model's name and rows in any recognised format."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_utils import get_last_checkpoint

from larf_curate.errors import InputError
from larf_curate.model_source import ModelSource, load_tokenizer
from larf_curate.training.callbacks import CostCallback, FiniteGuard
from larf_curate.training.contrastive import References
from larf_curate.training.rows import training_rows
from larf_curate.training.sap import SapConfig, SapTrainer, named_targets

# isort: split
from peft import LoraConfig  # sap has said how to install these two
from trl import SFTConfig, SFTTrainer

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is fine-tuned; the same recipe, start and rows give the same weights.

    The defaults are gentle: on a small model they let clean rows cost some refusals, with little noise.

    Args:
        method: ``sft`` or ``sap``.
        lora_rank: Rank of the LoRA; 0 trains all weights.
        lora_alpha: Scale of the LoRA.
        lora_targets: Ends of the names of the layers that get one.
        learning_rate: Initial learning rate, with linear decay.
        epochs: Passes over the rows.
        batch_size: Rows an optimizer step.
        micro_batch_size: Rows a forward pass; divides the batch size.
        warmup: Share of the steps over which the learning rate rises.
        max_length: Longest row in tokens.
        dtype: The weights' dtype.
        bf16: Whether to compute in bfloat16.
        epsilon: Of SAP; see `SapConfig`.
        beta: Of SAP; see `SapConfig`.
        probe_step: Of SAP; see `SapConfig`.
        probe_blocks: Of SAP; see `SapConfig`.
        refusals: Of SAP; see `SapConfig`. Here ``own``, which kept more refusals where the two were compared.
        contrastive_batch_size: Of SAP; see `SapConfig`.
    """

    method: str = "sft"
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_targets: tuple[str, ...] = SEVEN
    learning_rate: float = 2e-4
    epochs: float = 2
    batch_size: int = 16
    micro_batch_size: int = 16
    warmup: float = 0.1
    max_length: int = 1024
    dtype: str = "float32"
    bf16: bool = False
    epsilon: float = 2e-5
    beta: float = 0.05
    probe_step: str = "sign"
    probe_blocks: str = "auto"
    refusals: str = "own"
    contrastive_batch_size: int = 8

    def __post_init__(self) -> None:
        if self.method not in ("sft", "sap"):
            raise InputError(f"wanted the method sft or sap, got {self.method!r}")
        if self.micro_batch_size < 1 or self.batch_size % self.micro_batch_size:
            raise InputError(
                f"wanted a batch_size that micro_batch_size divides, got {self.batch_size} and {self.micro_batch_size}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The recipe, for JSON."""
        return {**asdict(self), "lora_targets": list(self.lora_targets)}


def fine_tune(
    model: str,
    rows: Dataset,
    output: str | Path,
    *,
    recipe: Recipe,
    seed: int = 0,
    references: References = "builtin",
    columns: Mapping[str, str] | None = None,
    save_steps: int = 0,
    resume: bool = False,
) -> Any:  # noqa: ANN401  trl has no types
    """Fine-tune a model.

    Args:
        model: Folder or Hub id.
        rows: Rows in any recognised format.
        output: Folder for checkpoints, the weights or adapter and the tokenizer.
        recipe: How.
        seed: Seed of the order, of dropout and of the LoRA's start.
        references: Contrastive rows of SAP.
        columns: Column names by role, if they are not to be found.
        save_steps: Steps between checkpoints; 0 keeps only the end.
        resume: Go on from the last checkpoint in the folder, if there is one.

    Returns:
        The trainer, trained, with ``model``, ``processing_class`` and ``state``.

    Raises:
        InputError: If the rows cannot be used.
        ModelError: If the model cannot be loaded or has no layer for the LoRA.
        TrainingError: If the loss breaks.
    """
    tokenizer = load_tokenizer(ModelSource(model_id=model))
    table = training_rows(rows, tokenizer, max_length=recipe.max_length, columns=columns)
    options = _options(recipe, str(output), seed, save_steps)
    common = {"train_dataset": table, "processing_class": tokenizer, "peft_config": _lora(recipe)}
    trainer: Any
    with named_targets():
        if recipe.method == "sap":
            trainer = SapTrainer(model, SapConfig(**options, **_sap(recipe)), references=references, **common)
        else:
            trainer = SFTTrainer(model, SFTConfig(**options), callbacks=[CostCallback(), FiniteGuard()], **common)
    found = get_last_checkpoint(str(output)) if resume and Path(output).is_dir() else None
    with redirect_stdout(sys.stderr):  # where the trainer's log lines belong
        trainer.train(resume_from_checkpoint=found)
    trainer.save_model(str(output))
    return trainer


def _options(recipe: Recipe, output: str, seed: int, save_steps: int) -> dict[str, Any]:
    return {
        "output_dir": output,
        "per_device_train_batch_size": recipe.micro_batch_size,
        "gradient_accumulation_steps": recipe.batch_size // recipe.micro_batch_size,
        "learning_rate": recipe.learning_rate,
        "num_train_epochs": recipe.epochs,
        "warmup_steps": recipe.warmup,
        "max_length": recipe.max_length,
        "bf16": recipe.bf16,
        "model_init_kwargs": {"dtype": recipe.dtype},
        "activation_checkpointing": False,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 500,
        "save_total_limit": 2,
        "seed": seed,
    }


def _sap(recipe: Recipe) -> dict[str, Any]:
    names = ("epsilon", "beta", "probe_step", "probe_blocks", "refusals", "contrastive_batch_size")
    return {name: getattr(recipe, name) for name in names}


def _lora(recipe: Recipe) -> LoraConfig | None:
    if not recipe.lora_rank:
        return None
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        target_modules=list(recipe.lora_targets),
        task_type="CAUSAL_LM",
    )
