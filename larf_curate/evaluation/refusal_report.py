"""Refusal rates: harmful prompts, which a model should refuse, and safe ones, which it should answer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field
from typing_extensions import TypedDict

from larf_curate.conversation.refusals import off_topic
from larf_curate.conversation.thoughts import has_thought, is_unfinished, knows_thoughts
from larf_curate.errors import InputError
from larf_curate.evaluation.judges import JUDGES, OpenJudge, name_of
from larf_curate.models.generation import Chat, Decided, generate_answers, load_model
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.stats import bootstrap_interval, difference_interval, mcnemar

logger = logging.getLogger(__name__)


class RowRecord(TypedDict):
    """A prompt of a report with its answer."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    prompt: str
    answer: str
    refused: bool
    off_topic: bool | None


class ReportRecord(TypedDict):
    """A file that `RefusalReport.save` wrote: the figures of `RefusalReport.summary`, and all rows."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    model: str
    judge: str
    prompts: int
    refused: int
    rate: float
    interval: tuple[float, float]
    off_topic: float | None
    rows: Annotated[list[RowRecord], Field(min_length=1)]
    digest: str


@dataclass(frozen=True, kw_only=True)
class RefusalReport:
    """A model's answers to a set of prompts, and which of them refuse.

    Args:
        model: Name of the model.
        judge: Name of the judge.
        prompts: The prompts, at least one.
        answers: The answers, in the order of the prompts.
        refused: Whether each answer refuses.
        off_topic: Whether each answer shares no content word with its prompt, which is frequent in broken models. Such
            answers count as refusals only if the judge counts them. None for all if they end where the judge had
            decided.
    """

    model: str
    judge: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    refused: tuple[bool, ...]
    off_topic: tuple[bool | None, ...]

    @property
    def has_whole_answers(self) -> bool:
        """Whether the answers are complete, rather than ended where the judge had decided."""
        return None not in self.off_topic

    @property
    def rate(self) -> float:
        """Refusal rate, in [0, 1]; on harmful prompts low is bad, on safe prompts high is bad."""
        return sum(self.refused) / len(self.refused)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the refusal rate; exact if all or no answers refuse."""
        return bootstrap_interval(self.refused)

    def summary(self) -> dict[str, Any]:
        """The figures without prompts and answers, for JSON."""
        return {
            "model": self.model,
            "judge": self.judge,
            "prompts": len(self.prompts),
            "refused": sum(self.refused),
            "rate": self.rate,
            "interval": list(self.interval),
            "off_topic": sum(map(bool, self.off_topic)) / len(self.off_topic) if self.has_whole_answers else None,
        }

    def save(self, path: str | Path) -> None:
        """Write the figures and all answers as JSON."""
        # The figures are stored for readers of the file; `load` computes them again from the rows.
        rows = zip(self.prompts, self.answers, self.refused, self.off_topic, strict=True)
        names = RowRecord.__annotations__
        write_sealed(path, {**self.summary(), "rows": [dict(zip(names, row, strict=True)) for row in rows]})

    @classmethod
    def load(cls, path: str | Path) -> "RefusalReport":
        """Read a report that `save` wrote.

        Raises:
            InputError: If the file is missing, is not such a report, or was changed.
        """
        record = read_sealed(path, ReportRecord, remedy="measure again with larf-curate evaluate")
        rows = [cast(Mapping[str, Any], row) for row in record["rows"]]
        columns = zip(*([row[name] for name in RowRecord.__annotations__] for row in rows), strict=True)
        prompts, answers, refused, off_topic = columns
        return cls(
            model=record["model"],
            judge=record["judge"],
            prompts=prompts,
            answers=answers,
            refused=refused,
            off_topic=off_topic,
        )


def evaluate_refusals(
    model: Any,  # noqa: ANN401  transformers has no types
    prompts: Sequence[Chat],
    *,
    tokenizer: Any = None,  # noqa: ANN401
    judge: str | OpenJudge = "phrases",
    max_new_tokens: int = 160,
    batch_size: int = 16,
    system: str | None = None,
    name: str = "",
    until_decided: bool = False,
) -> RefusalReport:
    """Generate a greedy answer to every prompt and judge which answers refuse.

    Args:
        model: A causal language model of transformers, or its folder or Hub id.
        prompts: Texts of the user, or lists of chat messages.
        tokenizer: The tokenizer; required if ``model`` is an object, ignored otherwise.
        judge: ``phrases``, ``noncompliance`` (off-topic answers count too), ``larf`` (the LARF authors' keywords), or
            a function of prompts and answers.
        max_new_tokens: Longest answer in tokens; 160 in the LARF paper.
        batch_size: Number of prompts per batch.
        system: System message for every prompt; default: none.
        name: Name of the model in the report; default: its own, which for an adapter is that of its base model.
        until_decided: Whether to end each answer once the judge's verdict cannot change any more. Verdicts are those on
            complete answers; which answers are off topic is not known.

    Returns:
        The answers and which of them refuse.

    Raises:
        InputError: If there are no prompts, a prompt does not fit into the context window, there is no such judge, or
            it leaves an answer unjudged, or it reads complete answers only.
        ModelError: If the model cannot be loaded, has no chat template, or its logits are NaN.
    """
    if not prompts:
        raise InputError("wanted prompts, got none: give at least one")
    refuses = _judge_of(judge)
    if until_decided:
        _check_decides(refuses, name_of(judge))
    if isinstance(model, str):
        name = name or model
        model, tokenizer = load_model(model)
    elif tokenizer is None:
        raise InputError("wanted a tokenizer beside a model object: give tokenizer=…, or the model's name")
    else:
        name = name or getattr(model, "name_or_path", "") or type(model).__name__
    answers = generate_answers(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        system=system,
        decided=_decided(refuses, tokenizer) if until_decided else None,
    )
    _warn_of_unfinished(answers, max_new_tokens)
    # Judges read the message that is answered, not the turns before it.
    texts = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    judge_name = name_of(judge)
    return RefusalReport(
        model=name,
        judge=judge_name,
        prompts=tuple(texts),
        answers=tuple(answers),
        refused=_complete(refuses(texts, answers), judge_name),
        off_topic=tuple(None if until_decided else off_topic(*pair) for pair in zip(texts, answers, strict=True)),
    )


def _check_decides(judge: OpenJudge, name: str) -> None:
    """Check that a judge can decide on an answer before its end."""
    if not hasattr(judge, "is_decided"):
        raise InputError(
            f"wanted a judge that decides on the beginning of an answer, {' or '.join(JUDGES)}, got {name}: let "
            "answers be complete"
        )


def _decided(judge: Any, tokenizer: Any) -> Decided:  # noqa: ANN401  a judge with `is_decided`
    """Tells of each answer whether the judge has decided.

    A thought may begin or end anywhere in the answer of a model that knows thoughts, and undo the decision: its answers
    are ended early only after a thought.
    """
    knows = knows_thoughts(tokenizer)

    def decided(_number: int, text: str) -> bool:
        return bool((not knows or has_thought(text)) and judge.is_decided(text))

    return decided


def compare_refusals(one: RefusalReport, other: RefusalReport) -> dict[str, Any]:
    """Compare two models on the same prompts.

    Args:
        one: Report of the first model, the baseline.
        other: Report of the second model.

    Returns:
        ``models`` and ``rates`` of both, ``change`` (second rate minus first, in [-1, 1]) with its 95 % ``interval``,
        the number of refusals ``lost`` and ``gained``, and the ``p_value`` of the exact McNemar test.

    Raises:
        InputError: If the prompts or the judges differ.
    """
    if one.prompts != other.prompts:
        raise InputError("the two reports have different prompts: evaluate both models on the same set")
    if one.judge != other.judge:
        raise InputError(
            f"the two reports have different judges, {one.judge} and {other.judge}: use one judge for both"
        )
    # Both models answered the same prompts: paired differences vary less than the two rates.
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
    """Plot refusal rates with their 95 % intervals as horizontal bars.

    Args:
        reports: Reports by the label to show.
        path: Image file to write; its suffix sets the format.
    """
    from matplotlib.figure import Figure

    names = [name.replace("$", r"\$") for name in reports]  # matplotlib reads text between dollar signs as a formula
    rates = [100 * report.rate for report in reports.values()]
    bounds = [report.interval for report in reports.values()]
    # Clipped at 0, since matplotlib rejects negative error bars, which rounding can cause at 0 and 100 %.
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


def _warn_of_unfinished(answers: Sequence[str], max_new_tokens: int) -> None:
    """Warn of answers that end within the model's thought: a low refusal rate would otherwise look like a result."""
    if unfinished := sum(map(is_unfinished, answers)):
        logger.warning(
            "%d of %d answers end within the model's thought and count as no refusal: allow more than %d new tokens, "
            "or use a chat template that turns thinking off",
            unfinished,
            len(answers),
            max_new_tokens,
        )


def _judge_of(judge: str | OpenJudge) -> OpenJudge:
    if not isinstance(judge, str):
        return judge
    if judge not in JUDGES:
        raise InputError(f"there is no judge {judge!r}: use one of {', '.join(JUDGES)}, or pass a function")
    return JUDGES[judge]


def _complete(verdicts: Sequence[bool | None], judge: str) -> tuple[bool, ...]:
    """The verdicts, if there is one for each answer: rates of the first judge have no place for unjudged answers."""
    known = [verdict for verdict in verdicts if verdict is not None]
    if len(known) < len(verdicts):
        raise InputError(
            f"wanted a verdict on each answer, got none from {judge} on {len(verdicts) - len(known)} of "
            f"{len(verdicts)}: use it as a second judge, for which such answers are left out"
        )
    return tuple(known)
