"""Training rows for fine-tuning: token ids, with labels on assistant turns, end-of-turn tokens included."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, Features, Sequence, Value

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import check_columns
from larf_curate.conversation.templates import Tokenizer
from larf_curate.conversation.truncation import Tokens
from larf_curate.errors import InputError

logger = logging.getLogger(__name__)
IGNORED = -100
"""Label of a token without loss, as in PyTorch's cross entropy."""

UNLIMITED = 1 << 30
"""A ``max_length`` that truncates no row."""
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

    Only assistant turns have labels. Their end-of-turn token is trained on even if it is also the padding token. Rows
    longer than ``max_length`` lose their end.

    Args:
        dataset: Rows in any format of `larf_curate.conversation.schemas`.
        tokenizer: The model's tokenizer, with a chat template.
        max_length: Longest row in tokens.
        columns: Column names by role; default: inferred from the dataset.
        keep_all: Whether rows without an answer within ``max_length`` tokens are kept, without labels.

    Returns:
        ``input_ids`` and ``labels`` of the rows with an answer within ``max_length`` tokens, in order. The number of
        other rows is logged.

    Raises:
        ConversationError: If ``columns`` do not suit the dataset.
        InputError: If no row has an answer within ``max_length`` tokens.
    """
    if columns:
        check_columns(dataset.features, columns)
    render = Renderer(tokenizer, max_length=UNLIMITED, columns=columns)  # which would remove the middle, not the end
    rendered = [item for start in range(0, len(dataset), 1000) for item in render(_batch(dataset, start))]
    rows = [_training_row(item.tokens, max_length) for item in rendered]
    reasons = [
        item.reason or f"no answer within {max_length} tokens"
        for item, row in zip(rendered, rows, strict=True)
        if not _count_labels(row["labels"])
    ]
    if len(reasons) == len(rows):
        raise InputError(
            f"none of {len(dataset)} rows has an assistant answer within {max_length} tokens"
            f"{f' (first: {reasons[0]})' if reasons else ''}: check the columns, or raise max_length"
        )
    if keep_all:
        return Dataset.from_list(rows, features=FEATURES)
    if reasons:
        logger.warning("%d of %d rows are left out (first: %s)", len(reasons), len(rows), reasons[0])
    return Dataset.from_list([row for row in rows if _count_labels(row["labels"])], features=FEATURES)


def training_tokens(rows: Dataset) -> list[int]:
    """Number of tokens with a loss in each training row."""
    return [_count_labels(labels) for labels in rows["labels"]]


def rows_digest(dataset: Dataset) -> str:
    """Hex SHA-256 of all values of a dataset, read in batches."""
    digest = hashlib.sha256()
    for batch in dataset.iter(batch_size=1000):
        digest.update(json.dumps(batch, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _count_labels(labels: list[int]) -> int:
    """Number of labels with a loss: a causal model predicts no first token."""
    return sum(label != IGNORED for label in labels[1:])


def _batch(dataset: Dataset, start: int) -> list[dict[str, Any]]:
    return list(dataset.select(range(start, min(start + 1000, len(dataset)))))


def _training_row(tokens: Tokens | None, max_length: int) -> dict[str, list[int]]:
    """Label the assistant turns and cut the end; a row without tokens becomes an empty one."""
    ids = tokens.ids if tokens else []
    labels = [IGNORED] * len(ids)
    for turn in tokens.turns if tokens else ():
        labels[turn.start : turn.end + 1] = ids[turn.start : turn.end + 1]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}
