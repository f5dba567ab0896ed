"""Conversations as training rows: token ids, and labels on what the assistant says, end of turn included."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Features, Sequence, Value

from larf_curate.conversation.chat_template import Renderer, Tokenizer, Tokens
from larf_curate.conversation.schemas import check_columns
from larf_curate.errors import InputError

logger = logging.getLogger(__name__)
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
        dataset: Rows in any format of `larf_curate.conversation.schemas`.
        tokenizer: The model's tokenizer, with a chat template.
        max_length: Longest row in tokens.
        columns: Column names by role, if they are not to be found.
        keep_all: Whether a row without an answer within ``max_length`` keeps its place, with nothing to learn.

    Returns:
        The rows with an answer within ``max_length``, in order, as ``input_ids`` and ``labels``; how many have none is
        logged.

    Raises:
        InputError: If no row is left.
    """
    if columns:
        check_columns(dataset.features, columns)
    render = Renderer(tokenizer, max_length=UNLIMITED, columns=columns)
    rendered = [item for start in range(0, len(dataset), 1000) for item in render(_rows(dataset, start))]
    rows = [_row(item.tokens, max_length) for item in rendered]
    reasons = [
        item.reason or f"no answer within {max_length} tokens"
        for item, row in zip(rendered, rows, strict=True)
        if not _learned(row["labels"])
    ]
    if len(reasons) == len(rows):
        raise InputError(
            f"none of {len(dataset)} rows has an assistant answer within {max_length} tokens"
            f"{f' (first: {reasons[0]})' if reasons else ''}: look at the columns, or raise max_length"
        )
    if keep_all:
        return Dataset.from_list(rows, features=FEATURES)
    if reasons:
        logger.warning("%d of %d rows are left out (first: %s)", len(reasons), len(rows), reasons[0])
    return Dataset.from_list([row for row in rows if _learned(row["labels"])], features=FEATURES)


def training_tokens(rows: Dataset) -> list[int]:
    """Number of learned tokens of each training row."""
    return [_learned(labels) for labels in rows["labels"]]


def rows_digest(dataset: Dataset) -> str:
    """Hex SHA-256 of all cells."""
    digest = hashlib.sha256()
    for batch in dataset.iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _learned(labels: list[int]) -> int:
    """Number of labels that a causal model predicts: the first token follows nothing."""
    return sum(label != IGNORED for label in labels[1:])


def _rows(dataset: Dataset, start: int) -> list[dict[str, Any]]:
    return list(dataset.select(range(start, min(start + 1000, len(dataset)))))


def _row(tokens: Tokens | None, max_length: int) -> dict[str, list[int]]:
    ids = tokens.ids if tokens else []
    labels = [IGNORED] * len(ids)
    for turn in tokens.turns if tokens else ():
        labels[turn.start : turn.end + 1] = ids[turn.start : turn.end + 1]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}
