"""Contrastive rows whose refusals are the model's own: the ones that fine-tuning would cost it."""

import logging
from typing import Any

from larf_curate.conversation.refusals import KeywordJudge
from larf_curate.conversation.schemas import to_messages
from larf_curate.models.generation import generate_answers
from larf_curate.training.contrastive import Sides

logger = logging.getLogger(__name__)
NEW_TOKENS = 48
"""Longest refusal in tokens."""
FEWEST = 10


def own_refusals(sides: Sides, model: Any, tokenizer: Any) -> Sides:  # noqa: ANN401  transformers has no types
    """Put the model's greedy answers in the place of the safe ones, where they refuse.

    The SAP paper (https://arxiv.org/abs/2505.16737) contrasts the answers of a dataset. A model that refuses in other
    words finds those unlikely, and then the harmful direction follows wording rather than refusing.

    Prompts that the model answers are left out. If it refuses fewer than 10, and fewer than half of them, the sides
    stay as they are.

    Args:
        sides: Unsafe and safe conversations, paired.
        model: The model before it is fine-tuned.
        tokenizer: Its tokenizer, with a chat template.

    Returns:
        The unsafe conversations whose prompt the model refuses, and its refusals.

    Raises:
        InputError: If a prompt and its answer do not fit into the model's window.
    """
    prompts = [to_messages(row)[:-1] for row in sides[0]]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS)
    verdicts = KeywordJudge()([prompt[-1]["content"] for prompt in prompts], answers)
    refused = [place for place, verdict in enumerate(verdicts) if verdict]
    share = f"{len(refused)} of {len(prompts)} reference prompts"
    if len(refused) < min(FEWEST, len(prompts) / 2):
        logger.warning("the model refuses only %s: SAP contrasts with the refusals of the references", share)
        return sides
    logger.info("the model refuses %s: SAP contrasts with these refusals", share)
    safe = [{"messages": [*prompts[place], {"role": "assistant", "content": answers[place]}]} for place in refused]
    return [sides[0][place] for place in refused], list(safe)
