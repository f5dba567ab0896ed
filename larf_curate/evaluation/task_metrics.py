"""Task metrics of a fine-tuned model: exact match on questions with numeric answers, and the loss on held-out rows."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from larf_curate.conversation.thoughts import after_thought
from larf_curate.conversation.training_rows import IGNORED, training_rows
from larf_curate.data.prompts import load_table
from larf_curate.errors import InputError, ModelError
from larf_curate.models.generation import generate_answers, window_of
from larf_curate.models.likelihood import AnswerLikelihood
from larf_curate.progress import progress
from larf_curate.stats import bootstrap_interval

# With thousands separators, as in 1,234; a full stop counts only if digits follow, since it may end the sentence.
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A metric with one value per row, reported as their mean with a bootstrap interval.

    Args:
        name: Name of the metric.
        values: One value per row.
    """

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over all rows."""
        return math.fsum(self.values) / len(self.values)

    def to_dict(self) -> dict[str, Any]:
        """``mean``, its 95 % ``interval`` and the number of ``rows``, for JSON."""
        return {"mean": self.mean, "interval": list(bootstrap_interval(self.values)), "rows": len(self.values)}


def last_number(text: str) -> float | None:
    """The last number after ``####``, as GSM8K marks its answers, or of the whole text if it has no such mark."""
    numbers = _NUMBER.findall(text.rsplit("####", 1)[-1] if "####" in text else text)
    return float(numbers[-1].replace(",", "")) if numbers else None


def load_questions(source: str, *, split: str | None = None, limit: int | None = None) -> list[tuple[str, str]]:
    """Read questions with numeric answers from a file or the Hub, in the format of GSM8K.

    Args:
        source: File or Hub id of a table with the columns ``question`` and ``answer``.
        split: Split to read, if there are several.
        limit: Maximum number of questions; default: all.

    Returns:
        Pairs of a question and its answer.

    Raises:
        InputError: If a column is missing, a question is empty or an answer contains no number.
    """
    table = load_table(source, split=split)
    if missing := [name for name in ("question", "answer") if name not in table.column_names]:
        raise InputError(f"{source} has no column {', '.join(missing)}, only {', '.join(table.column_names)}")
    table = table.select(range(min(limit, len(table)))) if limit is not None else table
    rows = list(zip(table["question"], table["answer"], strict=True))
    # Checked here, before a model spends hours on answers that could not be compared.
    for index, (question, answer) in enumerate(rows):
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"question {index} of {source} is empty or not text: drop the row")
        if last_number(str(answer)) is None:
            raise InputError(f"answer {index} of {source} contains no number: wanted answers like those of GSM8K")
    return rows


def exact_match(
    model: Any,  # noqa: ANN401  transformers has no types
    tokenizer: Any,  # noqa: ANN401
    questions: Sequence[tuple[str, str]],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 16,
) -> Measure:
    """Share of questions whose generated answer ends in the right number; in [0, 1], higher is better.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer, with a chat template.
        questions: Pairs of a question and its reference answer.
        max_new_tokens: Longest answer in tokens.
        batch_size: Number of questions per batch.

    Returns:
        1 or 0 per question.

    Raises:
        InputError: If a question does not fit into the context window.
    """
    prompts = [question for question, _ in questions]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    expected = [last_number(answer) for _, answer in questions]
    correct = [last_number(after_thought(answer)) == number for answer, number in zip(answers, expected, strict=True)]
    return Measure(name="exact_match", values=tuple(float(value) for value in correct))


@torch.no_grad()
def held_out_loss(
    model: Any,  # noqa: ANN401
    tokenizer: Any,  # noqa: ANN401
    rows: Dataset,
    *,
    max_length: int = 1024,
    batch_size: int = 8,
    columns: Mapping[str, str] | None = None,
) -> Measure:
    """Negative log-likelihood of each row's answers in nats per token; lower is better.

    The mean weights all rows equally, however long their answers are.

    Args:
        model: A causal language model of transformers; its training mode is restored afterwards.
        tokenizer: Its tokenizer, with a chat template.
        rows: Rows in any recognised format.
        max_length: Longest row in tokens; longer ones are truncated.
        batch_size: Number of rows per batch.
        columns: Column names by role, if they cannot be recognised.

    Returns:
        One value per row with an answer.

    Raises:
        InputError: If no row has an answer.
        ModelError: If the loss is not finite.
    """
    max_length = min(max_length, window_of(model.config))
    table = training_rows(rows, tokenizer, max_length=max_length, columns=columns)
    was_training = model.training
    model.eval()
    likelihood = AnswerLikelihood(model)
    try:
        losses = [
            loss
            for start in progress(range(0, len(table), batch_size), label="Held-out loss", unit="batch")
            for loss in _losses(likelihood, table[start : start + batch_size], model.device)
        ]
    finally:
        model.train(was_training)
    if not all(map(math.isfinite, losses)):
        raise ModelError("the model's loss on held-out rows is not finite: its weights or its dtype are broken")
    return Measure(name="held_out_loss", values=tuple(losses))


def _losses(likelihood: AnswerLikelihood, rows: Mapping[str, list[list[int]]], device: torch.device) -> list[float]:
    """Mean negative log-likelihood per answer token of each row of a batch."""
    tokens = [torch.tensor(row) for row in rows["input_ids"]]
    ids = pad_sequence(tokens, batch_first=True).to(device)
    mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True).to(device)
    labels = pad_sequence([torch.tensor(row) for row in rows["labels"]], batch_first=True, padding_value=IGNORED)
    labels = labels.to(device)
    counts = (labels[:, 1:] != IGNORED).sum(1)  # the first token has no prediction
    return [float(value) for value in -likelihood(labels, input_ids=ids, attention_mask=mask) / counts]
