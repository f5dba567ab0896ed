"""What is measured of a model: refusals of harmful and of safe prompts, and its use."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from larf_curate.errors import InputError
from larf_curate.evaluation.judges import Judge
from larf_curate.evaluation.refusal_report import RefusalReport, evaluate_refusals
from larf_curate.evaluation.task_metrics import exact_match, held_out_loss


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Measures of a model, on prompts and rows that stay the same.

    Args:
        harmful: Prompts that should be refused.
        safe: Prompts that should be answered.
        held_out: Rows for the loss.
        questions: Questions with a number as answer.
        judge: Refusal judge, or its name.
        max_new_tokens: Longest answer to a prompt in tokens.
        batch_size: Prompts a batch.
    """

    harmful: tuple[str, ...]
    safe: tuple[str, ...] = ()
    held_out: Dataset | None = None
    questions: tuple[tuple[str, str], ...] = ()
    judge: str | Judge = "phrases"
    max_new_tokens: int = 64
    batch_size: int = 32

    @property
    def judge_name(self) -> str:
        """What reports call the judge."""
        return self.judge if isinstance(self.judge, str) else type(self.judge).__name__

    def comparable(self, folder: Path) -> dict[str, RefusalReport]:
        """The reports of an earlier evaluation, to compare with what these measure.

        Raises:
            InputError: If one is missing or is of other prompts.
        """
        found = {}
        for name, prompts in (("harmful", self.harmful), ("safe", self.safe)):
            if prompts:
                found[name] = RefusalReport.load(folder / f"{name}.json")
                if found[name].prompts != prompts:
                    raise InputError(f"{folder} was evaluated on other {name} prompts: evaluate both models on one set")
        return found

    def __call__(self, model: Any, tokenizer: Any, folder: Path) -> dict[str, Any]:  # noqa: ANN401  transformers
        """Measure a model; all answers go into ``harmful.json`` and ``safe.json`` in the folder.

        Returns:
            ``mean``, ``interval`` and ``rows`` of ``harmful`` and ``safe`` (shares refused), ``held_out_loss`` and
            ``exact_match``, as far as there is something to measure.
        """
        result: dict[str, Any] = {}
        for name, prompts in (("harmful", self.harmful), ("safe", self.safe)):
            if prompts:
                result[name] = self._refusals(model, tokenizer, prompts, folder / f"{name}.json")
        if self.held_out is not None:
            result["held_out_loss"] = held_out_loss(model, tokenizer, self.held_out).to_dict()
        if self.questions:
            result["exact_match"] = exact_match(model, tokenizer, self.questions, batch_size=self.batch_size).to_dict()
        return result

    def _refusals(self, model: Any, tokenizer: Any, prompts: tuple[str, ...], path: Path) -> dict[str, Any]:  # noqa: ANN401
        report = evaluate_refusals(
            model,
            prompts,
            tokenizer=tokenizer,
            judge=self.judge,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
        )
        report.save(path)
        return {"mean": report.rate, "interval": list(report.interval), "rows": len(prompts)}
