"""Incoherent answers, which no judge of refusals can place: repetition, and perplexity under the initial model."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from larf_curate.conversation.templates import ChatTemplate
from larf_curate.conversation.thoughts import after_thought
from larf_curate.conversation.training_rows import IGNORED
from larf_curate.models.likelihood import AnswerLikelihood

NGRAM, MAX_REPEATED, MIN_WORDS = 4, 0.5, 16
"""Length of the word n-grams, their largest repeated share (rep-n of https://arxiv.org/abs/1908.04319) in a coherent
answer, and the shortest answer in words that is judged by it."""
MAX_WORD = 16
"""Characters per word above which a text has no spaces between words."""
MAX_PERPLEXITY = 1000.0
"""Perplexity above which an answer counts as incoherent: fluent text has some 10 to 100, random tokens have about the
size of the vocabulary."""


def repeated(answer: str) -> float:
    """Share of an answer's word 4-grams that occurred in it before, in [0, 1); 0 for short answers.

    Characters stand for words in texts without spaces between words, such as Chinese ones.
    """
    text = after_thought(answer)
    words: Sequence[str] = text.split()
    if len(text) > MAX_WORD * len(words):
        words = "".join(words)
    grams = [tuple(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if len(words) >= MIN_WORDS else 0.0


@torch.no_grad()
def perplexities(model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]) -> list[float]:  # noqa: ANN401
    """Perplexity of each answer under a model, given its prompt; infinite for an empty answer.

    Args:
        model: A causal language model of transformers, such as that before fine-tuning.
        tokenizer: Its tokenizer, with a chat template.
        prompts: The prompts.
        answers: The answers.
    """
    template, likelihood, values = ChatTemplate(tokenizer), AnswerLikelihood(model), []
    for prompt, answer in zip(prompts, answers, strict=True):
        head = template([{"role": "user", "content": prompt}], generation_prompt=True)
        before, said = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (head, answer))
        if not said:
            values.append(math.inf)
            continue
        ids = torch.tensor([[*before, *said]], device=model.device)
        labels = ids.clone()
        labels[:, : len(before)] = IGNORED
        loss = -float(likelihood(labels, input_ids=ids)) / len(said)
        values.append(math.exp(min(loss, 700.0)))  # the largest exponent of a float is about 709
    return values


def incoherence(answers: Sequence[str], perplexity: Sequence[float] | None = None) -> dict[str, float | None]:
    """Share of incoherent answers.

    Args:
        answers: The answers, at least one.
        perplexity: Their perplexities under the initial model; default: judged by repetition alone.

    Returns:
        Shares in [0, 1]: ``repetitive``, ``empty``, ``improbable`` (None without perplexities) and ``incoherent``, any
        of these.
    """
    repetitive = [repeated(answer) > MAX_REPEATED for answer in answers]
    empty = [not answer.strip() for answer in answers]
    improbable = [value > MAX_PERPLEXITY for value in perplexity] if perplexity is not None else [False] * len(answers)
    either = [any(flags) for flags in zip(repetitive, empty, improbable, strict=True)]
    shares = {"repetitive": repetitive, "empty": empty, "improbable": improbable, "incoherent": either}
    figures: dict[str, float | None] = {name: sum(flags) / len(flags) for name, flags in shares.items()}
    return figures | ({"improbable": None} if perplexity is None else {})
