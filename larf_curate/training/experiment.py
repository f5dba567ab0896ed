"""Fine-tuning experiments: train on rows that a score picks and on control rows, and compare the remaining refusals."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from typing_extensions import TypedDict

from larf_curate.conversation.training_rows import rows_digest, training_rows, training_tokens
from larf_curate.errors import InputError
from larf_curate.evaluation.suite import EvaluationSuite
from larf_curate.files import sha256
from larf_curate.models.generation import load_model
from larf_curate.models.source import ModelSource, identify, load_tokenizer, weights_digest
from larf_curate.progress import part_of_run
from larf_curate.records import STRICT, read_sealed, record_digest, write_sealed
from larf_curate.training.arms import Arm, Indices, choose, signal_values
from larf_curate.training.contrastive import References, paired_sides, reusable, sides_digest
from larf_curate.training.findings import ANSWERS, BASE, RESULT, ExperimentResults, read_arm, run_folder
from larf_curate.training.finetune import fine_tune
from larf_curate.training.recipe import Recipe

logger = logging.getLogger(__name__)
IDENTITY = "verify.json"
"""Name of the file with the identity of an experiment."""
BULKY = ("larf_state", "larf_layer_scores", "larf_neighbors")
"""Columns of a scored dataset that no arm and no training run reads: left out of the digest, since they are large."""


class Identity(TypedDict):
    """``verify.json``: what must be equal for a run to belong to an experiment, and the recipes so far by method."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kind: Literal["verify"]
    version: Literal[2]
    model: str
    weights: str | None
    rows: int
    removed: float
    recipes: dict[str, Recipe]
    scored: str
    columns: dict[str, str]
    references: str
    prompts: str
    held_out: str | None
    judge: str
    max_new_tokens: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Fine-tune the same model on every arm with every recipe and seed, and evaluate the results.

    Each run has its own folder. Runs with a complete ``result.json`` are not repeated, so an interrupted experiment
    resumes. A folder of an experiment with another model, recipe, other rows or prompts is rejected.

    Args:
        model: Folder or Hub id of the initial model.
        scored: Scored rows, with ``larf_score`` and the columns to train on.
        folder: Folder of the runs.
        checks: What to evaluate.
        arms: Rules for choosing rows.
        recipes: Training recipes, one per method; every arm is trained with each of them.
        seeds: Seeds of choosing and training.
        rows: Number of rows of the arms that match it: ``top``, ``bottom``, ``random`` and ``longest``.
        removed: Share of rows that ``kept`` and ``thinned`` leave out, in [0, 1).
        columns: Column names by role, if they cannot be recognised.
        references: Contrastive rows of SAP.

    Raises:
        InputError: If arms, recipes or seeds are missing or repeated, or ``removed`` is out of range.
    """

    model: str
    scored: Dataset
    folder: Path
    checks: EvaluationSuite
    arms: tuple[Arm, ...]
    recipes: tuple[Recipe, ...] = field(default_factory=lambda: (Recipe(),))
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: int = 150
    removed: float = 0.1
    columns: Mapping[str, str] | None = None
    references: References = "builtin"

    def __post_init__(self) -> None:
        methods = [recipe.method for recipe in self.recipes]
        if not methods or len(set(methods)) < len(methods) or not self.arms or not self.seeds:
            raise InputError("wanted arms, seeds and one recipe per method: compare other recipes in separate folders")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(f"wanted each arm only once, got {', '.join(names)}")
        if not 0 <= self.removed < 1:
            raise InputError(f"wanted removed as a share from 0 to below 1, got {self.removed}")
        object.__setattr__(self, "references", reusable(self.references))  # every run reads them

    def run(self) -> "ExperimentResults":
        """Carry out the missing runs, then read the results of all runs.

        Raises:
            InputError: If the folder belongs to another experiment, a signal is missing, or there are too few rows.
            ModelError: If the model cannot be loaded.
            TrainingError: If a loss or gradient becomes NaN or infinite.
        """
        tokens = self._tokens()
        chosen = self._choose_rows(tokens)  # wrong signals and too few rows are detected before any work
        self._check_identity()
        if not self._is_complete(self.folder / BASE):
            model, tokenizer = load_model(self.model)
            with part_of_run("base"):
                found = self.checks(model, tokenizer, self.folder / BASE)
            self._write_result(self.folder / BASE, found)
            del model  # free its memory for the training runs
        runs = list(product(self.arms, self.recipes, self.seeds))
        for number, (arm, recipe, seed) in enumerate(runs, 1):
            with part_of_run(f"{number}/{len(runs)} {self._run_name(arm, recipe)} seed {seed}"):
                self._run(arm, recipe, seed, chosen[arm, seed], tokens)
        return ExperimentResults.read(
            self.folder, [self._run_name(a, r) for a in self.arms for r in self.recipes], self.seeds
        )

    def _choose_rows(self, tokens: Sequence[int]) -> dict[tuple[Arm, int], Indices]:
        """Row indices by arm and seed."""
        chosen = {}
        for arm in self.arms:
            unscored = np.full(len(self.scored), np.nan)
            scores = signal_values(self.scored, arm.signal) if arm.reads_scores else unscored
            for seed in self.seeds:
                chosen[arm, seed] = choose(arm, scores, tokens, count=self.rows, removed=self.removed, seed=seed)
        return chosen

    def _run(self, arm: Arm, recipe: Recipe, seed: int, chosen: Indices, tokens: Sequence[int]) -> None:
        """Train and evaluate one arm with one seed, unless its results are complete."""
        folder = run_folder(self.folder, self._run_name(arm, recipe), seed)
        if self._is_complete(folder):
            return
        trainer = fine_tune(
            self.model,
            self.scored.select(chosen),
            folder / "model",
            recipe=recipe,
            seed=seed,
            columns=self.columns,
            references=self.references,
        )
        costs = [entry["seconds_per_step"] for entry in trainer.state.log_history if "seconds_per_step" in entry]
        # Merging the adapter makes generation as fast as that of the initial model.
        model = trainer.model.merge_and_unload() if recipe.lora_rank else trainer.model
        result = self.checks(model, trainer.processing_class, folder)
        size = {"rows": len(chosen), "tokens": int(sum(tokens[row] for row in chosen))}
        self._write_result(folder, {**result, **size, "seconds_per_step": fmean(costs)})

    def _tokens(self) -> list[int]:
        """Number of training tokens of each row; 0 for rows without an answer."""
        tokenizer = load_tokenizer(ModelSource(model_id=self.model))
        length = self.recipes[0].max_length
        table = training_rows(self.scored, tokenizer, max_length=length, columns=self.columns, keep_all=True)
        return training_tokens(table)

    @cached_property
    def _shared(self) -> dict[str, Any]:
        """What all runs of this experiment share."""
        return {
            "kind": "verify",
            "version": 2,
            "model": identify(self.model),
            "weights": weights_digest(ModelSource(model_id=self.model)),
            "rows": self.rows,
            "removed": self.removed,
            "scored": rows_digest(self.scored.remove_columns([n for n in BULKY if n in self.scored.column_names])),
            "columns": dict(self.columns or {}),
            "references": self._identified_references(),
            "prompts": _digest([self.checks.harmful, self.checks.safe, self.checks.questions]),
            "held_out": None if self.checks.held_out is None else rows_digest(self.checks.held_out),
            "judge": self.checks.judge_name,
            "max_new_tokens": self.checks.max_new_tokens,
        }

    def _identified_references(self) -> str:
        """``builtin``, or the digest of the contrastive rows, however they are given."""
        if isinstance(self.references, str) and self.references == "builtin":
            return "builtin"
        return sides_digest(paired_sides(self.references))

    def _check_identity(self) -> None:
        """Record the experiment's identity in ``verify.json``, or compare it with the one recorded there."""
        path, recipes = self.folder / IDENTITY, {recipe.method: recipe.to_dict() for recipe in self.recipes}
        if path.exists():
            known: Any = read_sealed(path, Identity, remedy="use a new folder")
            changed = [key for key, value in self._shared.items() if known[key] != value]
            # Recipes accumulate: a later call may add a method, but not change the recipe of one.
            theirs = known["recipes"]
            changed += [f"{m} recipe" for m in recipes if m in theirs and not _alike(recipes[m], theirs[m])]
            if changed:
                raise InputError(f"{self.folder} holds runs with another {', '.join(changed)}: use a new folder")
            recipes = {**recipes, **theirs}  # of two that give the same results, the recorded one
        elif self.folder.exists() and any(not name.startswith(".") for name in os.listdir(self.folder)):
            raise InputError(f"{self.folder} is not empty, and holds no runs of verify: use a new folder")
        write_sealed(path, {**self._shared, "recipes": recipes})

    def _is_complete(self, folder: Path) -> bool:
        """Whether all results of a run have been written, and are of this experiment."""
        if not (folder / RESULT).exists():
            return False
        try:
            if read_arm("", [folder]).results[0]["experiment"] == record_digest(self._shared):
                return True
            reason = "it is of another experiment"
        except InputError as error:
            reason = str(error)
        logger.warning("the run in %s is done again: %s", folder, reason)
        return False

    def _write_result(self, folder: Path, result: Mapping[str, Any]) -> None:
        run = {"run": folder.relative_to(self.folder).as_posix(), "experiment": record_digest(self._shared)}
        write_sealed(folder / RESULT, {**run, "answers": sha256(folder / ANSWERS), **result})

    def _run_name(self, arm: Arm, recipe: Recipe) -> str:
        return f"{arm.name}+{recipe.method}"


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two recipes give the same results."""
    return Recipe.identity(one) == Recipe.identity(other)


def _digest(values: Any) -> str:  # noqa: ANN401  any JSON value
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:16]
