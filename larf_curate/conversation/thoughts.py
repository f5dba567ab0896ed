"""Thoughts of reasoning models: what is written before an answer, and where the answer begins.

Most open models write ``<think>…</think>`` (DeepSeek R1, Qwen3, GLM, SmolLM3); others have marks of their own:
``[THINK]`` (Magistral), ``<|channel|>analysis`` (gpt-oss), ``<|channel>thought`` (Gemma 4), ``<seed:think>`` (Seed),
``<|START_THINKING|>`` (Command A), ``<|inner_prefix|>`` (Apertus), ``◁think▷`` (Kimi-VL) and ``<thought>`` (EXAONE).
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

_NAME = r"(?:\w+:)?(?:think|thinking|thought|thoughts|reasoning)"
_OPENING = (
    rf"(?:<{_NAME}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|inner_prefix\|>|<\|channel>thought\b|"
    r"<\|channel\|>analysis\b[^<]{0,40}<\|message\|>|"
    # gpt-oss, decoded without its special tokens; and Granite 3.2, which writes words
    r"\A\s*analysis(?=[A-Z])|\A\s*Here is my thought process:)"
)
_CLOSING = (
    rf"(?:</{_NAME}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|inner_suffix\|>|<channel\|>|"
    r"<\|channel\|>final\b[^<]{0,40}<\|message\|>|assistantfinal|Here is my response:)"
)
_OPENS, _CLOSES = re.compile(_OPENING), re.compile(_CLOSING)
_THOUGHT = re.compile(rf"{_OPENING}.*?(?:{_CLOSING}|\Z)", re.DOTALL)
_OPEN_AT_END = re.compile(rf"({_OPENING})\s*\Z")
_ANSWER_MARK = re.compile(
    r"\A\s*(?:<(?:answer|response|output)>|<\|START_RESPONSE\|>|<\|START_TEXT\|>)\s*", re.IGNORECASE
)
_SPECIAL_MARK = re.compile(rf"{_OPENING}|{_CLOSING}|<\|(?:channel|message)\|>|<\|channel>")


def after_thought(answer: str) -> str:
    """The part of an answer that is no thought.

    Everything from the beginning of a thought to its end is removed. A thought whose beginning is part of the prompt,
    as in DeepSeek R1's generation prompt, has only its end in the answer: then all text up to there is removed.

    Args:
        answer: An answer; one without thoughts is returned unchanged.

    Returns:
        The text; empty if a thought never ends, for instance because generation stopped within it: then there is no
        answer to judge, whatever the thought says. See `is_unfinished`.
    """
    end, start = _CLOSES.search(answer), _OPENS.search(answer)
    if end and (start is None or end.start() < start.start()):
        answer = answer[end.end() :]
    return _ANSWER_MARK.sub("", _THOUGHT.sub("", answer))


def is_unfinished(answer: str) -> bool:
    """Whether an answer ends within its thought, so that nothing of it can be judged."""
    return bool(answer.strip()) and not after_thought(answer).strip()


def has_thought(answer: str) -> bool:
    """Whether an answer holds a complete thought, with the marks of both its ends."""
    start = _OPENS.search(answer)
    return start is not None and _CLOSES.search(answer, start.end()) is not None


def knows_thoughts(tokenizer: Any) -> bool:  # noqa: ANN401  any tokenizer of transformers
    """Whether a mark of thoughts occurs in a tokenizer's chat template or among its added tokens."""
    texts = [str(tokenizer.chat_template), *map(str, tokenizer.added_tokens_decoder.values())]
    return any(_OPENS.search(text) or _CLOSES.search(text) for text in texts)


def opened_thought(prompt: str) -> str:
    """The mark at the end of a rendered prompt that opens a thought, which then belongs to the answer; else empty."""
    found = _OPEN_AT_END.search(prompt)
    return found[1] if found else ""


def thought_of_template(tokenizer: Any) -> str:  # noqa: ANN401  any tokenizer of transformers
    """The mark of a thought that a chat template's generation prompt opens; empty if it opens none."""
    messages = [{"role": "user", "content": "x"}]
    with suppress(TemplateError):
        return opened_thought(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    return ""


@dataclass(frozen=True)
class AnswerDecoder:
    """Decodes generated answers without special tokens, except those that mark thoughts.

    Args:
        tokenizer: A tokenizer of transformers.
    """

    tokenizer: Any

    def __call__(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Decode the token ids of answers."""
        if self._omitted is None:
            return list(self.tokenizer.batch_decode(ids, skip_special_tokens=True))
        kept = [[token for token in answer if token not in self._omitted] for answer in ids]
        return list(self.tokenizer.batch_decode(kept, skip_special_tokens=False))

    @cached_property
    def _omitted(self) -> frozenset[int] | None:
        """Ids of special tokens that mark no thought; None if no special token marks one."""
        special = {index: str(token) for index, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        marks = {index for index, text in special.items() if _SPECIAL_MARK.search(text)}
        return frozenset({*special, *self.tokenizer.all_special_ids} - marks) if marks else None
