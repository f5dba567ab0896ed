"""One recipe for fine-tuning, SFT or SAP, from a model's name and rows in any recognised format."""

import logging
import math
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from larf_curate.conversation.training_rows import rows_digest, training_rows
from larf_curate.errors import InputError, ModelError
from larf_curate.files import read_json, write_json
from larf_curate.models.generation import window_of
from larf_curate.models.source import ModelSource, load_config, load_tokenizer, weights_digest
from larf_curate.training.callbacks import CostCallback, FiniteGuard
from larf_curate.training.checkpoints import last_whole
from larf_curate.training.choices import TRAINING_METHODS
from larf_curate.training.contrastive import References
from larf_curate.training.sap import SapTrainer, loading_errors
from larf_curate.training.sap_config import SapConfig

# isort: split
from peft import LoraConfig  # sap has said how to install these two
from trl import SFTConfig, SFTTrainer

logger = logging.getLogger(__name__)
FEW_STEPS = 10
"""Optimizer steps below which there is no warm-up."""
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
        batch_size: Rows an optimizer step, of all processes together.
        micro_batch_size: Rows a forward pass and process; divides the batch size.
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
        if self.method not in TRAINING_METHODS:
            raise InputError(f"wanted the method {' or '.join(TRAINING_METHODS)}, got {self.method!r}")
        for name in ("learning_rate", "epochs", "lora_alpha", "batch_size", "micro_batch_size", "max_length"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"wanted a {name} above 0, got {getattr(self, name)}")
        if self.lora_rank < 0:
            raise InputError(f"wanted a lora_rank of at least 0, got {self.lora_rank}: 0 trains all weights")
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise InputError(f"wanted a dtype of torch as in float32, got {self.dtype!r}")
        if self.batch_size % self.micro_batch_size:
            raise InputError(
                f"wanted a batch size that the micro batch size divides, got {self.batch_size} and "
                f"{self.micro_batch_size}: change one"
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
    """Fine-tune a model; ``training.json`` in the folder says with what, so that only the same training is resumed.

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
        InputError: If the rows cannot be used, or the folder holds the checkpoints of another training.
        ModelError: If the model cannot be loaded or has no layer for the LoRA.
        TrainingError: If the loss breaks.
    """
    source = ModelSource(model_id=model)
    tokenizer = load_tokenizer(source)
    if Path(output).resolve() == Path(model).resolve():
        raise InputError(f"{output} holds the model to start from: name another folder for the result")
    length = min(recipe.max_length, window_of(load_config(source)))
    table = training_rows(rows, tokenizer, max_length=length, columns=columns)
    checkpoint = _checkpoint(Path(output), _identity(source, recipe, seed, table), resume=resume)
    options = _options(recipe, str(output), seed, save_steps)
    if len(table) * recipe.epochs < FEW_STEPS * recipe.batch_size:
        options["warmup_steps"] = 0  # its first step has a rate of 0: of few steps that is too many
    common = {"train_dataset": table, "processing_class": tokenizer, "peft_config": _lora(recipe)}
    trainer: Any
    with loading_errors():
        if recipe.method == "sap":
            trainer = SapTrainer(model, SapConfig(**options, **_sap(recipe)), references=references, **common)
        else:
            trainer = SFTTrainer(model, SFTConfig(**options), callbacks=[CostCallback(), FiniteGuard()], **common)
    _check_targets(trainer.model, recipe)
    with redirect_stdout(sys.stderr):  # where the trainer's log lines belong
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output))
    return trainer


def _identity(source: ModelSource, recipe: Recipe, seed: int, table: Dataset) -> dict[str, Any]:
    """What must be the same for a training to go on from another's checkpoint."""
    start = {"model": source.model_id, "weights": weights_digest(source)}
    return {"kind": "training", **start, **recipe.to_dict(), "seed": seed, "rows": rows_digest(table)}


def _checkpoint(folder: Path, identity: Mapping[str, Any], *, resume: bool) -> str | None:
    """The checkpoint to go on from, if any; writes down what the folder belongs to.

    Raises:
        InputError: If there are checkpoints and they are not to be resumed, or belong to another training.
    """
    path, found = folder / "training.json", last_whole(folder)
    if not resume and any(folder.glob("checkpoint-*")):
        raise InputError(f"{folder} holds checkpoints of an earlier training: resume it, or take a new folder")
    known = read_json(path) if found and path.exists() else identity
    if other := [key for key in identity if known.get(key) != identity[key]]:
        raise InputError(f"{found} is of a training with another {', '.join(other)}: take a new folder")
    if resume and not found:
        logger.warning("there is no checkpoint in %s: training starts at its first step", folder)
    write_json(path, identity)
    return found


def _check_targets(model: Any, recipe: Recipe) -> None:  # noqa: ANN401
    """Refuse names of layers that match none; the default ones are those of many models together."""
    if not recipe.lora_rank or recipe.lora_targets == SEVEN:
        return
    found = {name.rsplit(".lora_A", 1)[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    for target in recipe.lora_targets:
        if not any(f".{name}".endswith(f".{target}") for name in found):
            raise ModelError(f"the model has no layer {target!r} for the LoRA: name its linear layers")


def _options(recipe: Recipe, output: str, seed: int, save_steps: int) -> dict[str, Any]:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro = min(recipe.micro_batch_size, max(recipe.batch_size // processes, 1))
    if recipe.batch_size % (micro * processes):
        raise InputError(f"wanted a batch size that {processes} processes can share, got {recipe.batch_size}")
    return {
        "output_dir": output,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": recipe.batch_size // (micro * processes),
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
