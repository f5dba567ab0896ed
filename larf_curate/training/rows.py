"""Conversations as training rows: token ids, and labels on what the assistant says, end of turn included."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Features, Sequence, Value

from larf_curate.errors import InputError
from larf_curate.rendering import Renderer, Tokenizer, Tokens

IGNORED = -100
"""Label of a token that is not learned."""

UNLIMITED = 1 << 30
FEATURES = Features({"input_ids": Sequence(Value("int32")), "labels": Sequence(Value("int32"))})


def training_rows(
    dataset: Dataset,
    tokenizer: Tokenizer,
    *,
    max_length: int = 1024,
    columns: Mapping[str, str] | None = None,
    keep_all: bool = False,
) -> Dataset:
    """Tokenize rows of any recognised format for `SapTrainer` or TRL's ``SFTTrainer``.

    Only assistant turns carry labels. Their end-of-turn token is learned also where the tokenizer pads with it. Rows
    longer than ``max_length`` lose their end.

    Args:
        dataset: Rows in any format of `larf_curate.conversation`.
        tokenizer: The model's tokenizer, with a chat template.
        max_length: Longest row in tokens.
        columns: Column names by role, if they are not to be found.
        keep_all: Whether a row without an answer within ``max_length`` keeps its place, with nothing to learn.

    Returns:
        The rows with an answer within ``max_length``, in order, as ``input_ids`` and ``labels``.

    Raises:
        InputError: If no row is left.
    """
    render = Renderer(tokenizer, max_length=UNLIMITED, columns=columns)
    rendered = [item.tokens for start in range(0, len(dataset), 1000) for item in render(_rows(dataset, start))]
    rows = [_row(item, max_length) for item in rendered]
    kept = [row for row in rows if any(label != IGNORED for label in row["labels"])]
    if not kept:
        raise InputError(
            f"none of {len(dataset)} rows has an assistant answer within {max_length} tokens: "
            "look at the columns, or raise max_length"
        )
    return Dataset.from_list(rows if keep_all else kept, features=FEATURES)


def training_tokens(rows: Dataset) -> list[int]:
    """Number of learned tokens of each training row."""
    return [sum(label != IGNORED for label in labels) for labels in rows["labels"]]


def _rows(dataset: Dataset, start: int) -> list[dict[str, Any]]:
    return list(dataset.select(range(start, min(start + 1000, len(dataset)))))


def _row(tokens: Tokens | None, max_length: int) -> dict[str, list[int]]:
    ids = tokens.ids if tokens else []
    labels = [IGNORED] * len(ids)
    for turn in tokens.turns if tokens else ():
        labels[turn.start : turn.end + 1] = ids[turn.start : turn.end + 1]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}
