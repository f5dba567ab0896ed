"""Fine-tune a model by name with SFT or SAP, on rows in any recognised format."""

import logging
import math
import os
import sys
from collections.abc import Mapping
from contextlib import closing, redirect_stdout
from pathlib import Path
from typing import Any, Literal, NotRequired

import torch
from datasets import Dataset
from transformers import PrinterCallback
from typing_extensions import TypedDict

from larf_curate.conversation.training_rows import rows_digest, training_rows
from larf_curate.data.tables import no_progress_bars
from larf_curate.errors import InputError, ModelError
from larf_curate.files import is_temporary
from larf_curate.models.generation import window_of
from larf_curate.models.source import ModelSource, check_checkpoint, load_config, load_tokenizer, quiet, weights_digest
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.training.answer_loss import AnswerLossTrainer
from larf_curate.training.callbacks import CostCallback, FiniteGuard, TrainingBar
from larf_curate.training.card import model_card
from larf_curate.training.checkpoints import last_complete, steps_of
from larf_curate.training.choices import SAP_FIELDS
from larf_curate.training.contrastive import References, paired_sides, reusable, sides_digest
from larf_curate.training.own_refusals import store_refusals, stored_refusals
from larf_curate.training.recipe import PROJECTIONS, Recipe
from larf_curate.training.sap import SapTrainer, loading_errors
from larf_curate.training.sap_config import SapConfig

# isort: split
from peft import LoraConfig  # importing sap has checked that these two are installed
from trl import SFTConfig

logger = logging.getLogger(__name__)
RECORD = "training.json"
"""Name of the file that identifies a training run in its folder, written before all others."""
OWN_REFUSALS = "refusals.json"
"""Name of the file of the contrastive rows with the model's own refusals, while a run is not complete."""
CPU_TOKENS, ACCELERATOR_ROWS = 256, 16
"""Size of a micro-batch, if the recipe has none: tokens on a CPU, where more only need more memory; rows elsewhere."""
FEW_STEPS = 10
"""Optimizer steps below which the learning rate is not warmed up."""


class TrainingRecord(TypedDict):
    """``training.json``: what must be equal for a run to continue from a checkpoint."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kind: Literal["training"]
    model: str
    weights: str | None
    recipe: Recipe
    seed: int
    rows: str
    references: NotRequired[str | None]
    digest: str


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
    """Fine-tune a model and save the result.

    ``training.json`` in the output folder records the model, recipe, seed, rows and, for SAP, contrastive rows, so that
    only the same training run can be resumed.

    Args:
        model: Folder or Hub id of the initial model.
        rows: Rows in any recognised format.
        output: Folder for checkpoints, the weights or adapter, and the tokenizer.
        recipe: Hyperparameters.
        seed: Seed of the row order, of dropout and of the LoRA's initial weights.
        references: Contrastive rows of SAP.
        columns: Column names by role, if they cannot be recognised.
        save_steps: Number of steps between checkpoints; 0 saves only the final model.
        resume: Whether to continue from the last complete checkpoint in the folder, if there is one.

    Returns:
        The trainer after training, with ``model``, ``processing_class`` and ``state``.

    Raises:
        InputError: If the rows cannot be used, or the folder holds the checkpoints of another training run, or
            anything else than the output of one.
        ModelError: If the model cannot be loaded or has no layer for the LoRA.
        TrainingError: If a loss, a gradient or the weights become NaN or infinite.
    """
    source = ModelSource(model_id=model)
    tokenizer = load_tokenizer(source)
    if Path(output).resolve() == Path(model).resolve():
        raise InputError(f"{output} holds the model to start from: name another folder for the result")
    _check_output(Path(output))
    check_checkpoint(source)
    length = min(recipe.max_length, window_of(load_config(source)))
    table = training_rows(rows, tokenizer, max_length=length, columns=columns)
    references = reusable(references)  # read here and by the trainer
    contrastive = sides_digest(paired_sides(references)) if recipe.method == "sap" else None
    identity = {**_identity(source, recipe, seed, table), "references": contrastive}
    checkpoint = _checkpoint(Path(output), identity, resume=resume)
    longest = max(map(len, table["input_ids"]))
    options = _options(recipe, str(output), seed, save_steps, longest)
    options |= _length(recipe, len(table), checkpoint)
    if len(table) * recipe.epochs < FEW_STEPS * recipe.batch_size or 0 < recipe.max_steps < FEW_STEPS:
        options["warmup_steps"] = 0  # the first step of a warm-up has rate 0 and is lost, too much of a short run
    common = {"train_dataset": table, "processing_class": tokenizer, "peft_config": _lora(recipe)}
    _warn_if_sft(recipe)
    trainer: Any
    with quiet(), no_progress_bars(), loading_errors():
        if recipe.method == "sap":
            trainer = _sap_trainer(model, recipe, options, references, common, resumed=checkpoint is not None)
        else:
            trainer = AnswerLossTrainer(
                model, SFTConfig(**options), callbacks=[CostCallback(), FiniteGuard()], **common
            )
    _check_targets(trainer.model, recipe)
    trainer.remove_callback(PrinterCallback)  # it prints every log entry, of which the bar shows the loss
    trainer.add_callback(bar := TrainingBar())
    with quiet(), closing(bar), redirect_stdout(sys.stderr):  # stdout is for the command's result
        trainer.train(resume_from_checkpoint=checkpoint)
    with quiet():
        trainer.save_model(str(output))
    if trainer.is_world_process_zero():
        card = model_card(identity, rows=len(table), steps=trainer.state.global_step)
        card.save(Path(output) / "README.md")  # in place of PEFT's, which is blank and has the model's local path
        (Path(output) / OWN_REFUSALS).unlink(missing_ok=True)  # rows of the references do not belong beside a model
    return trainer


def _warn_if_sft(recipe: Recipe) -> None:
    """Warn of SAP without both of its steps."""
    if recipe.method == "sap" and recipe.safe_cosine == -1 and not (recipe.epsilon and recipe.beta):
        logger.warning(
            "SAP with neither probes (epsilon and beta above 0) nor a turned gradient (safe_cosine above -1) does what "
            "SFT does: set one, or the method sft"
        )


def _length(recipe: Recipe, rows: int, checkpoint: str | None) -> dict[str, Any]:
    """How long to train, as options of ``trl.SFTConfig``: not at all if the checkpoint is the end of the run."""
    steps = math.ceil(recipe.epochs * math.ceil(rows / recipe.batch_size))
    steps = min(steps, recipe.max_steps or steps)
    if checkpoint and steps_of(checkpoint) >= steps:
        logger.warning("%s is the end of this training run: nothing is left to train", checkpoint)
        return {"num_train_epochs": 0}  # with a number of steps, transformers would take one more
    return {"max_steps": steps if recipe.max_steps else -1}


def _identity(source: ModelSource, recipe: Recipe, seed: int, table: Dataset) -> dict[str, Any]:
    """The fields of `TrainingRecord` that every method has, without its digest."""
    initial = {"model": source.model_id, "weights": weights_digest(source)}
    return {"kind": "training", **initial, "recipe": recipe.to_dict(), "seed": seed, "rows": rows_digest(table)}


def _check_output(folder: Path) -> None:
    """Check that the folder is new, or of an earlier training run: the model and its card replace what is there.

    Raises:
        InputError: If it holds anything else.
    """
    if not folder.is_dir() or all(map(is_temporary, folder.iterdir())):
        return
    try:
        read_sealed(folder / RECORD, TrainingRecord, remedy="use a new folder")
    except InputError as error:
        raise InputError(
            f"wanted a new folder or one that larf-curate train wrote, got {folder} with other files: use a new folder"
        ) from error


def _checkpoint(folder: Path, identity: Mapping[str, Any], *, resume: bool) -> str | None:
    """The checkpoint to continue from, if any; records the run's identity in the folder.

    Raises:
        InputError: If there are checkpoints and ``resume`` is not set, or they belong to another training run or to
            none that is recorded.
    """
    path, found = folder / RECORD, last_complete(folder)
    if not resume and any(folder.glob("checkpoint-*")):
        raise InputError(
            f"{folder} holds checkpoints of an earlier training run: continue it with --resume (resume=True), or use a "
            "new folder"
        )
    known: Any = read_sealed(path, TrainingRecord, remedy="use a new folder") if found else identity
    known = {"references": identity["references"], **known}  # which earlier versions did not record
    ours, theirs = ({**record, **Recipe.identity(record["recipe"]), "recipe": None} for record in (identity, known))
    if changed := [key for key in ours if theirs.get(key) != ours[key]]:
        raise InputError(f"{found} is of a training run with another {', '.join(changed)}: use a new folder")
    if resume and not found:
        logger.warning("there is no checkpoint in %s: training starts from the beginning", folder)
    write_sealed(path, identity)
    return found


def _check_targets(model: Any, recipe: Recipe) -> None:  # noqa: ANN401
    """Reject LoRA targets that match no layer; the default targets may, since they cover several architectures."""
    if not recipe.lora_rank or recipe.lora_targets == PROJECTIONS:
        return
    adapted = {name.rsplit(".lora_A", 1)[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    for target in recipe.lora_targets:
        if not any(f".{name}".endswith(f".{target}") for name in adapted):
            raise ModelError(f"the model has no layer {target!r} for the LoRA: name its linear layers")


def _options(recipe: Recipe, output: str, seed: int, save_steps: int, longest: int) -> dict[str, Any]:
    """The recipe as options of ``trl.SFTConfig``, for rows of at most ``longest`` tokens."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # With several processes, each gets its share, so that the number of processes does not change the result.
    if recipe.batch_size % processes:
        raise InputError(f"wanted a batch size that {processes} processes can share, got {recipe.batch_size}")
    share = recipe.batch_size // processes
    micro = min(recipe.micro_batch_size, share) or _micro_batch(share, longest)
    if share % micro:
        raise InputError(f"wanted a batch size that {processes} processes can share, got {recipe.batch_size}")
    return {
        "output_dir": output,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": share // micro,
        "optim": recipe.optimizer,
        "learning_rate": recipe.learning_rate,
        "num_train_epochs": recipe.epochs,
        "warmup_steps": recipe.warmup,  # below 1: a share of the steps
        "max_length": recipe.max_length,
        "bf16": recipe.bf16,
        "model_init_kwargs": {"dtype": recipe.dtype},
        "activation_checkpointing": recipe.gradient_checkpointing,
        "dataloader_pin_memory": torch.accelerator.is_available(),
        "use_cpu": not torch.accelerator.is_available(),
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,  # in favour of `TrainingBar`
        "save_strategy": "steps" if save_steps else "no",
        "save_steps": save_steps or 500,
        "save_total_limit": 2,
        "seed": seed,
    }


def _micro_batch(share: int, longest: int) -> int:
    """Rows of a micro-batch by default: a divisor of a process's share of the batch."""
    most = ACCELERATOR_ROWS if torch.accelerator.is_available() else max(CPU_TOKENS // longest, 1)
    return max(size for size in range(1, share + 1) if share % size == 0 and size <= most)


def _sap_trainer(
    model: str,
    recipe: Recipe,
    options: Mapping[str, Any],
    references: References,
    common: Mapping[str, Any],
    *,
    resumed: bool,
) -> SapTrainer:
    """The trainer of SAP; a run that is resumed takes the model's own refusals from its folder."""
    path, own = Path(options["output_dir"]) / OWN_REFUSALS, recipe.refusals == "own"
    stored = stored_refusals(path) if own and resumed else None
    config = SapConfig(**options, **_sap(recipe) | ({} if stored is None else {"refusals": "given"}))
    trainer = SapTrainer(model, config, references=references if stored is None else stored, **common)
    if own and stored is None and trainer.is_world_process_zero():
        store_refusals(path, trainer.sides)
    return trainer


def _sap(recipe: Recipe) -> dict[str, Any]:
    """The recipe's options that only `SapConfig` has."""
    return {name: getattr(recipe, name) for name in SAP_FIELDS}


def _lora(recipe: Recipe) -> LoraConfig | None:
    if not recipe.lora_rank:
        return None
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        target_modules=list(recipe.lora_targets),
        task_type="CAUSAL_LM",
    )
