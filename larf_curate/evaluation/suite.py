"""Evaluation suite of a model: refusals of harmful and of safe prompts, held-out loss and exact match."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from larf_curate.errors import InputError
from larf_curate.evaluation.judges import GuardJudge, OpenJudge, name_of
from larf_curate.evaluation.refusal_report import RefusalReport, evaluate_refusals
from larf_curate.evaluation.task_metrics import exact_match, held_out_loss
from larf_curate.progress import part_of_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluationSuite:
    """What to measure of a model; calling it on several models measures all of them on the same prompts and rows.

    Args:
        harmful: Prompts that should be refused.
        safe: Prompts that should be answered.
        held_out: Rows for the held-out loss; default: not measured.
        questions: Pairs of a question and its answer, which holds a number, for exact match.
        judge: Refusal judge, or its name in `JUDGES`. Answers to safe prompts are judged by `phrases` if it is a
            `GuardJudge`, which would count every harmless answer as a refusal.
        max_new_tokens: Longest answer to a prompt in tokens.
        batch_size: Number of prompts per batch.
        until_decided: Whether answers to prompts end where the judge has decided; see `evaluate_refusals`.
    """

    harmful: tuple[str, ...]
    safe: tuple[str, ...] = ()
    held_out: Dataset | None = None
    questions: tuple[tuple[str, str], ...] = ()
    judge: str | OpenJudge = "phrases"
    max_new_tokens: int = 64
    batch_size: int = 32
    until_decided: bool = False

    @property
    def judge_name(self) -> str:
        """Name of the judge in reports."""
        return name_of(self.judge)

    def comparable(self, folder: Path) -> dict[str, RefusalReport]:
        """Read the refusal reports of an earlier evaluation that used the same prompts.

        Args:
            folder: Output folder of that evaluation.

        Returns:
            The reports by kind, ``harmful`` and ``safe``.

        Raises:
            InputError: If a report is missing or has other prompts.
        """
        reports = {}
        for name, prompts in (("harmful", self.harmful), ("safe", self.safe)):
            if prompts:
                reports[name] = RefusalReport.load(folder / f"{name}.json")
                # McNemar's test needs pairs: rates on other prompts could differ because of the prompts.
                if reports[name].prompts != prompts:
                    raise InputError(
                        f"{folder} was evaluated on other {name} prompts ({len(reports[name].prompts)} there, "
                        f"{len(prompts)} here): evaluate both models on the same set, with the same --limit"
                    )
        return reports

    def check_judges(self, earlier: Mapping[str, RefusalReport]) -> None:
        """Check that the answers of an earlier evaluation have been judged by the same judge.

        Args:
            earlier: Its reports by kind; see `comparable`.

        Raises:
            InputError: If they have not.
        """
        for kind, report in earlier.items():
            wanted = "phrases" if kind == "safe" and isinstance(self.judge, GuardJudge) else self.judge_name
            if report.judge != wanted:
                raise InputError(
                    f"the {kind} prompts of the earlier evaluation were judged by {report.judge}, wanted {wanted}: use "
                    "one judge for both"
                )

    def check_output(self, folder: Path) -> None:
        """Check that the files that are written replace none but those of an earlier evaluation.

        Args:
            folder: Output folder; it need not exist.

        Raises:
            InputError: If one of them exists and is no report.
        """
        for name, prompts in (("harmful", self.harmful), ("safe", self.safe)):
            path = folder / f"{name}.json"
            if prompts and (path.exists() or path.is_symlink()):
                _check_report(path)

    def __call__(self, model: Any, tokenizer: Any, folder: Path, *, name: str = "") -> dict[str, Any]:  # noqa: ANN401
        """Measure a model; write all answers to ``harmful.json`` and ``safe.json`` in the folder.

        Args:
            model: A causal language model of transformers.
            tokenizer: Its tokenizer, with a chat template.
            folder: Folder to write to.
            name: Name of the model in the reports; default: its own.

        Returns:
            ``mean``, ``interval`` (95 %) and ``rows`` of each measure for which there are prompts or rows: ``harmful``
            and ``safe`` (share refused, in [0, 1]), ``held_out_loss`` (nats per token) and ``exact_match`` (share of
            correct answers).
        """
        result: dict[str, Any] = {}
        for kind, prompts in (("harmful", self.harmful), ("safe", self.safe)):
            if prompts:
                with part_of_run(f"{kind} prompts"):
                    result[kind] = self._refusals(model, tokenizer, prompts, folder / f"{kind}.json", name)
        if self.held_out is not None:
            result["held_out_loss"] = held_out_loss(model, tokenizer, self.held_out).to_dict()
        if self.questions:
            with part_of_run("questions"):
                measured = exact_match(model, tokenizer, self.questions, batch_size=self.batch_size)
            result["exact_match"] = measured.to_dict()
        return result

    def _refusals(
        self,
        model: Any,  # noqa: ANN401  transformers has no types
        tokenizer: Any,  # noqa: ANN401
        prompts: tuple[str, ...],
        path: Path,
        name: str,
    ) -> dict[str, Any]:
        of_harm = prompts is self.safe and isinstance(self.judge, GuardJudge)
        if of_harm:
            logger.warning("%s judges harm, not refusals: safe prompts are judged by phrases", self.judge_name)
        report = evaluate_refusals(
            model,
            prompts,
            tokenizer=tokenizer,
            judge="phrases" if of_harm else self.judge,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            name=name,
            until_decided=self.until_decided,
        )
        report.save(path)
        return {"mean": report.rate, "interval": list(report.interval), "rows": len(prompts)}


def _check_report(path: Path) -> None:
    try:
        RefusalReport.load(path)
    except InputError as error:
        raise InputError(
            f"{path} is no report of larf-curate evaluate, and would be overwritten: write to another folder"
        ) from error
