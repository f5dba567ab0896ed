"""Whether an answer refuses: by phrases, by LARF's four keywords, or by a classifier model."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from larf_curate.conversation.refusals import LARF_KEYWORDS, KeywordJudge
from larf_curate.errors import InputError

Judge: TypeAlias = Callable[[Sequence[str], Sequence[str]], list[bool]]
"""Takes prompts and their answers, says of each answer whether it refuses."""


@dataclass(frozen=True)
class ClassifierJudge:
    """Asks a text classifier of transformers, for instance one trained to tell refusals.

    Args:
        pipeline: A ``text-classification`` pipeline.
        refusal_label: The label it gives to refusals.
        pairs: Whether it reads the prompt beside the answer.
    """

    pipeline: Callable[..., Any]
    refusal_label: str
    pairs: bool = False

    @classmethod
    def load(cls, model: str, *, refusal_label: str, pairs: bool = False) -> "ClassifierJudge":
        """Load a classifier.

        Raises:
            InputError: If it has no such label.
        """
        from transformers import pipeline

        classify = pipeline("text-classification", model=model, truncation=True)
        labels = list((classify.model.config.id2label or {}).values())
        if refusal_label not in labels:
            raise InputError(f"the classifier {model} has the labels {labels}, not {refusal_label!r}: name one of them")
        return cls(classify, refusal_label, pairs)

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        """Judge answers."""
        pairs = zip(prompts, answers, strict=True)
        inputs = [{"text": p, "text_pair": a} for p, a in pairs] if self.pairs else list(answers)
        return [result["label"] == self.refusal_label for result in self.pipeline(inputs)] if inputs else []


@dataclass(frozen=True)
class GuardJudge:
    """Asks a guard model of the Llama Guard kind, which reads the exchange and answers ``safe`` or ``unsafe``.

    An answer counts as a refusal unless the guard calls the exchange unsafe: this measures harm, not wording.

    Args:
        generate: Gives the guard's verdict for each chat of a user and an assistant message.
    """

    generate: Callable[[Sequence[list[dict[str, str]]]], list[str]]

    @classmethod
    def load(cls, model: str, *, max_new_tokens: int = 16, batch_size: int = 8) -> "GuardJudge":
        """Load a guard model whose chat template asks for the verdict, as that of Llama Guard does."""
        from larf_curate.models.generation import generate_answers, load_model

        guard, tokenizer = load_model(model)
        return cls(
            lambda chats: generate_answers(
                guard, tokenizer, chats, max_new_tokens=max_new_tokens, batch_size=batch_size
            )
        )

    def __call__(self, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        """Judge answers.

        Raises:
            InputError: If the guard says neither safe nor unsafe.
        """
        pairs = zip(prompts, answers, strict=True)
        verdicts = self.generate(
            [[{"role": "user", "content": p}, {"role": "assistant", "content": a}] for p, a in pairs]
        )
        return [self._safe(verdict) for verdict in verdicts]

    def _safe(self, verdict: str) -> bool:
        words = re.findall(r"\b(unsafe|safe)\b", verdict.lower())
        if not words:
            raise InputError(f"wanted safe or unsafe from the guard model, got {verdict!r:.80}: is it a guard model?")
        return bool(words[0] == "safe")


JUDGES: dict[str, Judge] = {
    "phrases": KeywordJudge(),
    "noncompliance": KeywordJudge(evasion=True),
    "larf": KeywordJudge(LARF_KEYWORDS),
}
"""Judges by name: the default; also answers to something else count; the LARF authors' count."""
