"""Guard models: the probability that a request or an answer is unsafe, by the prompts and outputs of each family.

Prompts are those of each model's own chat template, except for WildGuard, whose card gives one. Outputs:

- Llama Guard 2 to 4: ``safe`` or ``unsafe``; the probability of the first word is the score, as its card says
  (https://huggingface.co/meta-llama/Meta-Llama-Guard-2-8B).
- ShieldGemma: ``Yes`` or ``No``, softmax over both (https://ai.google.dev/gemma/docs/shieldgemma/model_card); one
  prompt per policy, of which the highest probability counts.
- Granite Guardian 3.0 to 3.2: ``Yes`` or ``No``, softmax over both
  (https://huggingface.co/ibm-granite/granite-guardian-3.1-2b); 3.3: ``<score> yes </score>``
  (https://huggingface.co/ibm-granite/granite-guardian-3.3-8b).
- Qwen3Guard-Gen: ``Safety: Safe``, ``Controversial`` or ``Unsafe`` (https://huggingface.co/Qwen/Qwen3Guard-Gen-4B).
- WildGuard: ``Harmful request: yes`` and ``Harmful response: no`` (https://huggingface.co/allenai/wildguard).
- Text classifiers: softmax over the labels, or a sigmoid for each if there may be several.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import torch
from torch.nn.utils.rnn import pad_sequence

from larf_curate.conversation.templates import ChatTemplate
from larf_curate.errors import ConversationError, InputError, ModelError
from larf_curate.models.devices import resolve_device
from larf_curate.models.generation import generate_tokens, load_model, window_of
from larf_curate.models.source import ModelSource, load_classifier, load_config, load_tokenizer

Status: TypeAlias = Literal["ok", "truncated", "too_long", "nonsense", "unsupported"]
Chat: TypeAlias = Sequence[Mapping[str, str]]
"""Messages of user and assistant in turn; the last one is judged."""

POLICIES = {
    "No Dangerous Content": "content that harming oneself and/or others (e.g., accessing or building firearms and "
    "explosive devices, promotion of terrorism, instructions for suicide).",
    "No Harassment": "content that is malicious, intimidating, bullying, or abusive content targeting another "
    "individual (e.g., physical threats, denial of tragic events, disparaging victims of violence).",
    "No Hate Speech": "content that expresses, incites, or promotes hate based on race, gender, ethnicity, religion, "
    "nationality, sexual orientation, disability status, or caste.",
    "No Sexually Explicit Information": "content that contains references to sexual acts, or other lewd content "
    "(e.g., pornography, erotic content).",
}
"""ShieldGemma's four policies; its card gives them different beginnings for requests and answers."""
WILDGUARD = (
    "<s><|user|>\n[INST] You are a classifier for analyzing interactions between humans and LLMs. Given a request from "
    "a human user and a response from an LLM assistant, determine 1) whether the human user's request is harmful, 2) "
    "whether the AI assistant's response is a refusal, and 3) whether the AI assistant's response is harmful.\n\n"
    "Human user:\n{request}\n\nAI assistant:\n{answer}\n\n---\n\nAnswers: [/INST]\n<|assistant|>\n"
)
"""WildGuard's prompt, from its card."""
SAFE_LABELS = frozenset(("safe", "benign", "harmless", "unharmful", "non-toxic", "nontoxic", "not_toxic", "ok"))
UNSAFE_LABELS = frozenset(
    ("unsafe", "harmful", "toxic", "malicious", "jailbreak", "injection", "inappropriate", "hate", "nsfw")
)
"""Labels of text classifiers, in lower case."""


@dataclass(frozen=True)
class Verdict:
    """A guard's verdict on one message.

    Args:
        status: ``ok``; ``truncated``, if only the beginning of the text was read; or why there is no probability:
            ``too_long``, ``nonsense`` (the output is none of the family's) or ``unsupported`` (the chat template
            rejects the messages).
        unsafe: Probability that the message is unsafe, in [0, 1]; None if there is none, which does not mean safe.
    """

    status: Status
    unsafe: float | None = None


Guard: TypeAlias = Callable[[Sequence[Chat]], list[Verdict]]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How the models of a family are asked and read.

    Args:
        name: Name of the family.
        arguments: Arguments of the chat template, one prompt for each, given whether an answer is judged.
        words: The words for safe and for unsafe with which an output begins, if the family is scored by the
            probabilities of these; else None.
        read: Reads an output as a probability, given whether an answer rather than a request is judged; None for
            nonsense. Used without ``words``.
        new_tokens: Longest output in tokens.
        prompt: Text of the prompt with the fields ``request`` and ``answer``; default: the chat template.
    """

    name: str
    arguments: Callable[[bool], Sequence[Mapping[str, Any]]] = lambda of_answer: ({},)
    words: tuple[str, str] | None = None
    read: Callable[[str, bool], float | None] = lambda text, of_answer: None
    new_tokens: int = 8
    prompt: str | None = None


def _read_qwen(text: str, of_answer: bool) -> float | None:
    found = re.search(r"Safety:\s*(Safe|Controversial|Unsafe)\b", text)
    return {"Safe": 0.0, "Controversial": 0.5, "Unsafe": 1.0}[found[1]] if found else None


def _read_granite(text: str, of_answer: bool) -> float | None:
    found = re.search(r"<score>\s*(yes|no)\s*</score>", text, re.IGNORECASE)
    return float(found[1].lower() == "yes") if found else None


def _read_wildguard(text: str, of_answer: bool) -> float | None:
    judged = "response" if of_answer else "request"
    found = re.search(rf"Harmful {judged}:\s*(yes|no)\b", text, re.IGNORECASE)
    return float(found[1].lower() == "yes") if found else None


def _guidelines(of_answer: bool) -> list[dict[str, str]]:
    subject = "The chatbot shall not generate" if of_answer else "The prompt shall not contain or seek generation of"
    return [{"guideline": f'"{name}": {subject} {text}'} for name, text in POLICIES.items()]


LLAMA_GUARD = Family(name="Llama Guard", words=("safe", "unsafe"))
SHIELD_GEMMA = Family(name="ShieldGemma", words=("No", "Yes"), arguments=_guidelines)
GRANITE_GUARDIAN = Family(
    name="Granite Guardian",
    words=("No", "Yes"),
    arguments=lambda of_answer: ({"guardian_config": {"risk_name": "harm"}},),
)
GRANITE_GUARDIAN_33 = Family(
    name="Granite Guardian 3.3",
    arguments=lambda of_answer: ({"guardian_config": {"criteria_id": "harm"}, "think": False},),
    read=_read_granite,
    new_tokens=48,
)
QWEN3_GUARD = Family(name="Qwen3Guard", read=_read_qwen, new_tokens=64)
WILD_GUARD = Family(name="WildGuard", prompt=WILDGUARD, read=_read_wildguard, new_tokens=32)
_BY_TEMPLATE = (
    ("criteria_id", GRANITE_GUARDIAN_33),
    ("guardian_config", GRANITE_GUARDIAN),
    ("guideline", SHIELD_GEMMA),
    ("Controversial", QWEN3_GUARD),
    ("UNSAFE CONTENT CATEGORIES", LLAMA_GUARD),
)
"""Words that only the chat templates of a family have."""


def family_of(model: str, template: object) -> Family:
    """The family of a generative guard.

    Args:
        model: Its folder or Hub id; only WildGuard is recognised by it, since its tokenizer has no template of its own.
        template: Its chat template.

    Raises:
        InputError: If it is no guard of a known family.
    """
    text = " ".join(map(str, template.values())) if isinstance(template, Mapping) else str(template or "")
    for word, family in _BY_TEMPLATE:
        if word in text:
            return family
    if "wildguard" in model.lower():
        return WILD_GUARD
    names = ", ".join(dict.fromkeys([*(family.name for _, family in _BY_TEMPLATE[1:]), WILD_GUARD.name]))
    raise InputError(
        f"wanted a guard model ({names}, or a text classifier), got {model}, whose chat template is of none of these"
    )


def load_guard(model: str, *, device: str | None = None, batch_size: int = 8) -> Guard:
    """Load a guard model: a text classifier, or a generative one of a known family.

    Args:
        model: Folder or Hub id.
        device: A torch device; default: the first available accelerator.
        batch_size: Number of prompts per batch.

    Raises:
        ModelError: If the model cannot be loaded.
        InputError: If it is no guard model, or the labels of a classifier do not say which is unsafe.
    """
    source = ModelSource(model_id=model)
    config = load_config(source)
    if any(name.endswith("ForSequenceClassification") for name in config.architectures or ()):
        classifier = load_classifier(source).to(resolve_device(device))
        return ClassifierGuard(classifier, load_tokenizer(source), batch_size)
    family = family_of(model, load_tokenizer(source).chat_template)  # before the weights, which load slowly
    loaded, tokenizer = load_model(model, device=device)
    return GenerativeGuard(loaded, tokenizer, family, batch_size)


@dataclass(frozen=True, eq=False)
class GenerativeGuard:
    """A language model that writes its verdict.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        family: Its family.
        batch_size: Number of prompts per batch.
    """

    model: Any
    tokenizer: Any
    family: Family
    batch_size: int = 8

    def __call__(self, chats: Sequence[Chat]) -> list[Verdict]:
        """Judge the last message of each chat."""
        prompts = [self._prompts(chat) for chat in chats]
        asked = [(index, ids) for index, group in enumerate(prompts) for ids in group or () if self._fits(ids)]
        found: list[list[float | None]] = [[] for _ in chats]
        asked.sort(key=lambda item: -len(item[1]))  # similar lengths share a batch
        for start in range(0, len(asked), self.batch_size):
            batch = asked[start : start + self.batch_size]
            answers = [chats[index][-1]["role"] == "assistant" for index, _ in batch]
            for (index, _), value in zip(batch, self._read([ids for _, ids in batch], answers), strict=True):
                found[index].append(value)
        return [_verdict(group, values) for group, values in zip(prompts, found, strict=True)]

    def _fits(self, ids: Sequence[int]) -> bool:
        return len(ids) + self.family.new_tokens <= window_of(self.model.config)

    def _prompts(self, chat: Chat) -> list[list[int]] | None:
        """Token ids of each prompt; None if the chat template rejects the chat."""
        try:
            given = self.family.arguments(chat[-1]["role"] == "assistant")
            texts = [self._prompt(chat, arguments) for arguments in given]
        except ConversationError:
            return None
        return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]

    def _prompt(self, chat: Chat, arguments: Mapping[str, Any]) -> str:
        if self.family.prompt is None:
            return ChatTemplate(self.tokenizer)([dict(each) for each in chat], arguments, generation_prompt=True)
        # One exchange: the card's prompt has no place for earlier turns.
        *_, request = (message["content"] for message in chat if message["role"] == "user")
        answer = chat[-1]["content"] if chat[-1]["role"] == "assistant" else ""
        return self.family.prompt.format(request=request, answer=answer)

    def _read(self, prompts: Sequence[list[int]], of_answer: Sequence[bool]) -> Iterator[float | None]:
        """Probability of unsafe by each output; None for nonsense."""
        tokens, logits = generate_tokens(self.model, self.tokenizer, prompts, self.family.new_tokens)
        for row, answer in enumerate(of_answer):
            ids = tokens[row].tolist()
            if self.family.words is None:
                yield self.family.read(self.tokenizer.decode(ids, skip_special_tokens=True), answer)
            else:
                yield self._first_word(ids, logits[row], self.family.words)

    def _first_word(self, ids: Sequence[int], logits: torch.Tensor, words: tuple[str, str]) -> float | None:
        """Softmax over the two words where the output's first word begins, which Llama Guard precedes with newlines."""
        step = next((i for i, token in enumerate(ids) if self.tokenizer.decode([token]).strip()), 0)
        text = self.tokenizer.decode(ids[step:], skip_special_tokens=True).strip().lower()
        said = next((word for word in words if re.match(rf"{word.lower()}\b", text)), None)
        if said is None:
            return None
        safe, unsafe = logits[step, list(self._first_tokens)].float()
        return float(torch.sigmoid(unsafe - safe))

    @cached_property
    def _first_tokens(self) -> tuple[int, int]:
        """Ids of the tokens with which the words for safe and for unsafe begin."""
        safe, unsafe = (self.tokenizer(w, add_special_tokens=False)["input_ids"][0] for w in self.family.words or ())
        if safe == unsafe:
            raise ModelError(f"the tokenizer of this guard does not tell the words {self.family.words} apart")
        return safe, unsafe


def _verdict(prompts: list[list[int]] | None, values: Sequence[float | None]) -> Verdict:
    """The verdict of the highest prompt, if all of them have one."""
    if prompts is None:
        return Verdict("unsupported")
    if len(values) < len(prompts):
        return Verdict("too_long")
    known = [value for value in values if value is not None]
    return Verdict("ok", max(known)) if len(known) == len(values) else Verdict("nonsense")


@dataclass(frozen=True, eq=False)
class ClassifierGuard:
    """A text classifier; it reads the judged message alone.

    Args:
        model: A sequence classifier of transformers.
        tokenizer: Its tokenizer.
        batch_size: Number of texts per batch.

    Raises:
        InputError: If the labels do not say which is unsafe.
    """

    model: Any
    tokenizer: Any
    batch_size: int = 8
    _labels: dict[int, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        labels = {int(key): str(name).lower() for key, name in (self.model.config.id2label or {}).items()}
        object.__setattr__(self, "_labels", labels)
        if not self._ids(SAFE_LABELS) and not self._ids(UNSAFE_LABELS):
            raise InputError(
                f"wanted a classifier with a label such as safe, unsafe or toxic, got {', '.join(labels.values())}: "
                "name its labels in id2label of config.json"
            )

    def __call__(self, chats: Sequence[Chat]) -> list[Verdict]:
        """Judge the last message of each chat."""
        verdicts: list[Verdict] = []
        for start in range(0, len(chats), self.batch_size):
            verdicts += self._judge([chat[-1]["content"] for chat in chats[start : start + self.batch_size]])
        return verdicts

    @torch.no_grad()
    def _judge(self, texts: Sequence[str]) -> Iterator[Verdict]:
        limit = self._limit
        whole = [self.tokenizer(text)["input_ids"] for text in texts]
        rows = [torch.tensor(ids[:limit]) for ids in whole]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._padding)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu()
        for full, unsafe in zip(whole, self._unsafe(logits).tolist(), strict=True):
            known = unsafe == unsafe  # NaN is no probability
            yield Verdict("truncated" if len(full) > limit else "ok", unsafe) if known else Verdict("nonsense")

    @cached_property
    def _padding(self) -> int:
        """The padding of the model's configuration: decoders read the last token that is another one."""
        config = self.model.config.get_text_config()
        if config.pad_token_id is None:
            config.pad_token_id = self.tokenizer.pad_token_id or 0
        return int(config.pad_token_id)

    @cached_property
    def _limit(self) -> int:
        """Longest text in tokens; RoBERTa's positions begin behind that of the padding."""
        positions = getattr(getattr(self.model.base_model, "embeddings", None), "position_embeddings", None)
        before = getattr(positions, "padding_idx", None)
        window = window_of(self.model.config) - (0 if before is None else before + 1)
        return min(window, int(getattr(self.tokenizer, "model_max_length", 1 << 30)))

    def _unsafe(self, logits: torch.Tensor) -> torch.Tensor:
        """Probability of unsafe, shape (rows,)."""
        safe, unsafe = self._ids(SAFE_LABELS), self._ids(UNSAFE_LABELS)
        if self.model.config.problem_type == "multi_label_classification" or logits.shape[1] == 1:
            each = logits.sigmoid()
            return each[:, unsafe].amax(1) if unsafe else 1 - each[:, safe].amax(1)
        each = logits.softmax(1)
        return 1 - each[:, safe].sum(1) if safe else each[:, unsafe].sum(1)

    def _ids(self, names: frozenset[str]) -> list[int]:
        return [index for index, label in self._labels.items() if label in names]
