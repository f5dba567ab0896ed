"""Contrastive rows with the model's own refusals, the ones that fine-tuning could remove."""

import logging
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from larf_curate.conversation.refusals import KeywordJudge
from larf_curate.conversation.schemas import to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError
from larf_curate.models.generation import generate_answers
from larf_curate.progress import part_of_run
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.training.contrastive import Sides

logger = logging.getLogger(__name__)
NEW_TOKENS = 48
"""Longest refusal in tokens."""
BATCH = 64
"""Prompts that are answered together."""
MIN_REFUSALS = 10
"""Refusals below which the references' refusals are used instead, if they are also fewer than half."""


class RefusalsRecord(TypedDict):
    """Contrastive rows that were made with a model's own refusals."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kind: Literal["own refusals"]
    unsafe: list[dict[str, Any]]
    safe: list[dict[str, Any]]
    digest: str


def own_refusals(sides: Sides, model: Any, tokenizer: Any) -> Sides:  # noqa: ANN401  transformers has no types
    """Replace the safe answers by the model's own greedy refusals; prompts that it answers are dropped.

    The SAP paper (https://arxiv.org/abs/2505.16737) contrasts the answers of a dataset. A model that refuses in other
    words assigns those a low probability, and then the harmful direction follows phrasing instead of refusing.

    If the model refuses fewer than 10 prompts and fewer than half of them, the sides are returned unchanged, with a
    warning.

    Args:
        sides: Unsafe and safe conversations, paired by index.
        model: The model before fine-tuning.
        tokenizer: Its tokenizer, with a chat template.

    Returns:
        The unsafe conversations whose prompts the model refuses, and its refusals.

    Raises:
        InputError: If a prompt and its answer do not fit into the context window.
    """
    prompts = [to_messages(row)[:-1] for row in sides[0]]
    with part_of_run("refusals for SAP"):
        answers = generate_answers(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, batch_size=BATCH)
    verdicts = KeywordJudge()([prompt[-1]["content"] for prompt in prompts], answers)
    refused = [index for index, verdict in enumerate(verdicts) if verdict]
    share = f"{len(refused)} of {len(prompts)} reference prompts"
    if len(refused) < min(MIN_REFUSALS, len(prompts) / 2):
        logger.warning("the model refuses only %s: SAP uses the refusals of the references", share)
        return sides
    logger.info("the model refuses %s: SAP uses these refusals", share)
    safe = [{"messages": [*prompts[index], {"role": "assistant", "content": answers[index]}]} for index in refused]
    return [sides[0][index] for index in refused], list(safe)


def store_refusals(path: Path, sides: Sides) -> None:
    """Store contrastive rows for a training run that is resumed."""
    unsafe, safe = ([dict(row) for row in side] for side in sides)
    write_sealed(path, {"kind": "own refusals", "unsafe": unsafe, "safe": safe})


def stored_refusals(path: Path) -> ReferenceSet | None:
    """The contrastive rows of `store_refusals`; None, with a warning if the file is damaged, if there are none."""
    if not path.exists():
        return None
    try:
        record: Any = read_sealed(path, RefusalsRecord, remedy="remove it")
    except InputError as error:
        logger.warning("the refusals of this run are generated again: %s", error)
        return None
    unsafe, safe = tuple(record["unsafe"]), tuple(record["safe"])
    return ReferenceSet(unsafe=unsafe, safe=safe, labels=("unsafe",) * len(unsafe), source=path.name)
