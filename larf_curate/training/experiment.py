"""What a filter is worth: fine-tune on the rows it picks and on others, and count the refusals that are left."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from datasets import Dataset

from larf_curate.conversation.training_rows import rows_digest, training_rows, training_tokens
from larf_curate.errors import InputError
from larf_curate.evaluation.suite import EvaluationSuite
from larf_curate.files import read_json, write_json
from larf_curate.models.generation import load_model
from larf_curate.models.source import ModelSource, identify, load_tokenizer, weights_digest
from larf_curate.training.arms import Arm, Indices, choose, signal_values
from larf_curate.training.contrastive import References
from larf_curate.training.findings import BASE, Findings, read_finding, run_folder
from larf_curate.training.finetune import Recipe, fine_tune

BULKY = ("larf_state", "larf_layer_scores", "larf_neighbors")
"""Columns of a scored dataset that no arm and no training reads."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Arms times seeds, each fine-tuned from the same start with the same recipe; every run is a folder.

    A run whose ``result.json`` is there is not done again, so an interrupted experiment goes on where it stopped. A
    folder that was made with another recipe, model or other prompts is refused.

    Args:
        model: Folder or Hub id of the start.
        scored: Scored rows, with a ``larf_score`` and the columns that they train on.
        folder: Where the runs go.
        checks: What is measured.
        arms: How rows are chosen.
        recipes: How is trained; every arm with each.
        seeds: Seeds.
        rows: Rows of the arms that pick some.
        removed: Share of rows that ``kept`` and ``thinned`` leave out.
        columns: Column names by role, if they are not to be found.
        references: Contrastive rows of SAP.
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
            raise InputError(
                "wanted arms, seeds and one recipe a method: compare other recipes in folders of their own"
            )
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise InputError(f"wanted every arm once, got {', '.join(names)}")
        if not 0 <= self.removed < 1:
            raise InputError(f"wanted removed as a share from 0 to under 1, got {self.removed}")

    def run(self) -> "Findings":
        """Do the runs that are missing, and read them all.

        Raises:
            InputError: If the folder belongs to another experiment, a signal is missing, or there are too few rows.
        """
        tokens = self._tokens()
        picks = self._picks(tokens)  # wrong signals and too few rows are found before any work
        self._claim()
        if not _is_done(self.folder / BASE):
            model, tokenizer = load_model(self.model)
            self._finish(self.folder / BASE, self.checks(model, tokenizer, self.folder / BASE))
            del model
        for arm in self.arms:
            for recipe in self.recipes:
                for seed in self.seeds:
                    self._run(arm, recipe, seed, picks[arm, seed], tokens)
        return Findings.read(self.folder, [self._name(a, r) for a in self.arms for r in self.recipes], self.seeds)

    def _picks(self, tokens: Sequence[int]) -> dict[tuple[Arm, int], Indices]:
        picks = {}
        for arm in self.arms:
            unscored = np.full(len(self.scored), np.nan)
            scores = signal_values(self.scored, arm.signal) if arm.reads_scores else unscored
            for seed in self.seeds:
                picks[arm, seed] = choose(arm, scores, tokens, count=self.rows, removed=self.removed, seed=seed)
        return picks

    def _run(self, arm: Arm, recipe: Recipe, seed: int, chosen: Indices, tokens: Sequence[int]) -> None:
        folder = run_folder(self.folder, self._name(arm, recipe), seed)
        if _is_done(folder):
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
        model = trainer.model.merge_and_unload() if recipe.lora_rank else trainer.model
        result = self.checks(model, trainer.processing_class, folder)
        size = {"rows": len(chosen), "tokens": int(sum(tokens[row] for row in chosen))}
        self._finish(folder, {**result, **size, "seconds_per_step": fmean(costs)})

    def _tokens(self) -> list[int]:
        """Training tokens of every row; 0 for one without an answer."""
        tokenizer = load_tokenizer(ModelSource(model_id=self.model))
        length = self.recipes[0].max_length
        table = training_rows(self.scored, tokenizer, max_length=length, columns=self.columns, keep_all=True)
        return training_tokens(table)

    def _claim(self) -> None:
        """Write what the experiment is, or compare it with what the folder says."""
        identity = {
            "kind": "verify",
            "version": 1,
            "model": identify(self.model),
            "weights": weights_digest(ModelSource(model_id=self.model)),
            "rows": self.rows,
            "removed": self.removed,
            "recipes": {recipe.method: recipe.to_dict() for recipe in self.recipes},
            "scored": rows_digest(self.scored.remove_columns([n for n in BULKY if n in self.scored.column_names])),
            "columns": dict(self.columns or {}),
            "references": self.references if isinstance(self.references, str) else type(self.references).__name__,
            "prompts": _digest([self.checks.harmful, self.checks.safe, self.checks.questions]),
            "held_out": None if self.checks.held_out is None else rows_digest(self.checks.held_out),
            "judge": self.checks.judge_name,
            "max_new_tokens": self.checks.max_new_tokens,
        }
        path = self.folder / "verify.json"
        if path.exists():
            known = read_json(path)
            other = [key for key in identity if key != "recipes" and known.get(key) != identity[key]]
            mine, theirs = identity["recipes"], known.get("recipes", {})
            other += [f"the {m} recipe" for m in mine if m in theirs and mine[m] != theirs[m]]  # type: ignore[attr-defined,index]
            if other:
                raise InputError(f"{self.folder} holds runs with another {', '.join(other)}: take a new folder")
            identity["recipes"] = {**theirs, **mine}  # type: ignore[dict-item]
        write_json(path, json.loads(json.dumps(identity)))

    def _finish(self, folder: Path, result: Mapping[str, Any]) -> None:
        write_json(folder / "result.json", dict(result))

    def _name(self, arm: Arm, recipe: Recipe) -> str:
        return f"{arm.name}+{recipe.method}"


def _digest(values: Any) -> str:  # noqa: ANN401  any JSON value
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()[:16]


def _is_done(folder: Path) -> bool:
    """Whether a run has written all of its results, and whole."""
    try:
        return "harmful" in read_finding("", [folder]).results[0]
    except (InputError, TypeError):
        return False
