"""How often a model refuses: harmful prompts that it should refuse, safe ones that it should not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larf_curate.conversation.refusals import off_topic
from larf_curate.errors import InputError
from larf_curate.evaluation.judges import JUDGES, Judge
from larf_curate.files import read_json, write_json
from larf_curate.models.generation import Chat, generate_answers, load_model
from larf_curate.stats import bootstrap_interval, difference_interval, mcnemar


@dataclass(frozen=True, kw_only=True)
class RefusalReport:
    """A model's answers to a set of prompts, and which of them refuse.

    Args:
        model: The model's name.
        judge: The judge's name.
        prompts: The prompts.
        answers: The answers, in the order of the prompts.
        refused: Whether each answer refuses.
        off_topic: Whether each answer shares no word with its prompt; a broken model does it often. Not counted as
            refusals unless the judge does.
    """

    model: str
    judge: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    refused: tuple[bool, ...]
    off_topic: tuple[bool, ...]

    @property
    def rate(self) -> float:
        """Share of refusals, in [0, 1]."""
        return sum(self.refused) / len(self.refused)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the rate."""
        return bootstrap_interval(self.refused)

    def summary(self) -> dict[str, Any]:
        """The figures without the texts."""
        return {
            "model": self.model,
            "judge": self.judge,
            "prompts": len(self.prompts),
            "refused": sum(self.refused),
            "rate": self.rate,
            "interval": list(self.interval),
            "off_topic": sum(self.off_topic) / len(self.off_topic),
        }

    def save(self, path: str | Path) -> None:
        """Write figures and answers as JSON."""
        rows = zip(self.prompts, self.answers, self.refused, self.off_topic, strict=True)
        names = ("prompt", "answer", "refused", "off_topic")
        write_json(path, {**self.summary(), "rows": [dict(zip(names, row, strict=True)) for row in rows]})

    @classmethod
    def load(cls, path: str | Path) -> "RefusalReport":
        """Read a report that `save` wrote.

        Raises:
            InputError: If the file is none.
        """
        value = read_json(path)
        try:
            rows, columns = value["rows"], ("prompt", "answer", "refused", "off_topic")
            prompts, answers, refused, astray = (tuple(row[name] for row in rows) for name in columns)
            return cls(
                model=value["model"],
                judge=value["judge"],
                prompts=prompts,
                answers=answers,
                refused=refused,
                off_topic=astray,
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is no refusal report: wanted one that larf-curate evaluate wrote") from error


def evaluate_refusals(
    model: Any,  # noqa: ANN401  transformers has no types
    prompts: Sequence[Chat],
    *,
    tokenizer: Any = None,  # noqa: ANN401
    judge: str | Judge = "phrases",
    max_new_tokens: int = 160,
    batch_size: int = 16,
    system: str | None = None,
) -> RefusalReport:
    """Ask a model all prompts and count its refusals.

    Args:
        model: A model of transformers, or its folder or Hub id.
        prompts: Users' prompts, or lists of messages.
        tokenizer: The tokenizer, if the model is not given by name.
        judge: ``phrases``, ``noncompliance`` (also answers to something else), ``larf`` (the LARF authors' keywords),
            or any judge.
        max_new_tokens: Longest answer in tokens; 160 in the LARF paper.
        batch_size: Prompts a batch.
        system: System message of every prompt, if any.

    Returns:
        The answers, judged.

    Raises:
        InputError: If there are no prompts, a prompt does not fit, or there is no such judge.
    """
    if not prompts:
        raise InputError("wanted prompts, got none: give at least one")
    decide = _judge(judge)
    if isinstance(model, str):
        name = model
        model, tokenizer = load_model(model)
    elif tokenizer is None:
        raise InputError("wanted a tokenizer beside a model object: give tokenizer=…, or the model's name")
    else:
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
    answers = generate_answers(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, system=system
    )
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    return RefusalReport(
        model=name,
        judge=judge if isinstance(judge, str) else type(judge).__name__,
        prompts=tuple(texts),
        answers=tuple(answers),
        refused=tuple(decide(texts, answers)),
        off_topic=tuple(off_topic(prompt, answer) for prompt, answer in zip(texts, answers, strict=True)),
    )


def compare_refusals(one: RefusalReport, other: RefusalReport) -> dict[str, Any]:
    """Two models on the same prompts: rates, their difference with its interval, and the exact McNemar test.

    Raises:
        InputError: If the prompts or the judges differ.
    """
    if one.prompts != other.prompts:
        raise InputError("the two reports belong to different prompts: evaluate both models on one set")
    if one.judge != other.judge:
        raise InputError(f"the two reports have different judges, {one.judge} and {other.judge}: judge both by one")
    change = [float(b) - float(a) for a, b in zip(one.refused, other.refused, strict=True)]
    return {
        "models": [one.model, other.model],
        "rates": [one.rate, other.rate],
        "change": sum(change) / len(change),
        "interval": list(difference_interval(change)),
        "lost": sum(value < 0 for value in change),
        "gained": sum(value > 0 for value in change),
        "p_value": mcnemar(one.refused, other.refused),
    }


def plot_refusals(reports: Mapping[str, RefusalReport], path: str | Path) -> None:
    """Draw refusal rates with their intervals.

    Args:
        reports: Reports by the name to show.
        path: The image to write; its ending says the format.
    """
    from matplotlib.figure import Figure

    names = [name.replace("$", r"\$") for name in reports]
    rates = [100 * report.rate for report in reports.values()]
    bounds = [report.interval for report in reports.values()]
    spread = [
        [max(rate - 100 * low, 0) for rate, (low, _) in zip(rates, bounds, strict=True)],
        [max(100 * high - rate, 0) for rate, (_, high) in zip(rates, bounds, strict=True)],
    ]
    figure = Figure(figsize=(6.4, 0.9 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, rates, xerr=spread, color="#4c72b0", ecolor="#333333", capsize=3)
    axes.set(xlim=(0, 100), xlabel="refusals (%), 95 % interval")
    axes.invert_yaxis()
    figure.savefig(path)


def _judge(judge: str | Judge) -> Judge:
    if not isinstance(judge, str):
        return judge
    if judge not in JUDGES:
        raise InputError(f"there is no judge {judge!r}: take one of {', '.join(JUDGES)}, or give a function")
    return JUDGES[judge]
