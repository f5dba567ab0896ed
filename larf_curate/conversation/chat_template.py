"""Conversations as token ids: the model's own chat template, and where each assistant turn begins and ends."""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os.path import commonprefix
from typing import Any, Literal, Protocol

from jinja2 import TemplateError

from larf_curate.conversation.schemas import (
    Conversation,
    EmptyConversationError,
    Message,
    Row,
    Schema,
    clean,
    to_conversation,
)
from larf_curate.errors import ConversationError, ModelError

Status = Literal["ok", "truncated", "empty", "malformed", "non_finite"]


class Tokenizer(Protocol):
    """What is used of a fast tokenizer of transformers."""

    is_fast: bool
    chat_template: str | dict[str, str] | None

    def __call__(self, text: Sequence[str], **options: bool) -> Mapping[str, Any]:
        """Tokenize texts."""
        ...

    def apply_chat_template(self, conversation: Sequence[Message], **options: object) -> Any:  # noqa: ANN401
        """Render a conversation."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Added tokens by id, each with ``special``."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Turn tokens into text."""
        ...


@dataclass(frozen=True)
class Turn:
    """Token positions of one assistant turn.

    Args:
        start: First token of the answer; ``start - 1`` is the prompt's last token. 0 for text without a prompt.
        end: Last token of the conversation as it stands after this turn, end-of-turn marks included.
    """

    start: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """One tokenized conversation.

    Args:
        ids: Token ids.
        turns: Its assistant turns in order, at least one.
    """

    ids: list[int]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A row made ready for a model, or the reason why it cannot be.

    Args:
        status: ``ok``, ``truncated``, ``empty`` or ``malformed``.
        tokens: The tokens; None for an empty or malformed row.
        reason: What was wanted and what came, for a row without tokens.
        texts: For each turn the conversation up to its end, without special tokens; only if the renderer keeps texts.
    """

    status: Status
    tokens: Tokens | None = None
    reason: str = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Text:
    """A rendered conversation and the character spans (answer start, end of turn) of its assistant turns."""

    text: str
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class Renderer:
    """Renders and tokenizes rows.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        max_length: Longest conversation in tokens; the middle of a longer one is left out, so that its beginning
            (a quarter) and the end of its last turn (the rest) stay.
        columns: Column names by role, if they are not to be found; see `to_conversation`.
        keep_texts: Whether to give the texts beside the tokens, for baselines that read words.

    Raises:
        ModelError: If the tokenizer has no chat template, or cannot tell which characters a token covers.
    """

    tokenizer: Tokenizer
    max_length: int
    columns: Mapping[str, str] | None = None
    keep_texts: bool = False
    _pieces: dict[tuple[str, ...], list[str] | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError(
                "wanted a fast tokenizer (tokenizer.json), got a slow one: convert it with transformers first"
            )
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the model has no chat template, so it is not known how its conversations look: "
                "take an instruct or chat model, or give a template (chat_template=…, --chat-template FILE)"
            )

    @cached_property
    def template_digest(self) -> str:
        """Hex SHA-256 of the chat template."""
        return template_digest(self.tokenizer)

    def __call__(self, rows: Sequence[Row | None], schema: Schema | None = None) -> list[Rendered]:
        """Render rows; one that cannot be rendered gets a status instead of an exception.

        Args:
            rows: The rows.
            schema: Their format, where it is known to be one; else it is found for each of them.
        """
        texts = [self._text(row, schema) for row in rows]
        good = [item.text for item in texts if isinstance(item, _Text)]
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        encoded = self.tokenizer(good, **options) if good else {"input_ids": [], "offset_mapping": []}
        found = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [self._tokens(item, *next(found)) if isinstance(item, _Text) else item for item in texts]

    def _text(self, row: Row | None, schema: Schema | None) -> _Text | Rendered:
        try:
            conversation = to_conversation(row, self.columns, schema=schema)
            return self._render(conversation)
        except EmptyConversationError as error:
            return Rendered(status="empty", reason=str(error))
        except ConversationError as error:
            return Rendered(status="malformed", reason=str(error))

    def _render(self, conversation: Conversation) -> _Text:
        if conversation.text is not None:
            return _Text(conversation.text, [(0, len(conversation.text))])
        text = self._apply(conversation.messages)
        return _Text(text, self._spans(conversation.messages, text))

    def _apply(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        except (TemplateError, TypeError, KeyError) as error:
            raise ConversationError(f"the model's chat template refuses the conversation: {error}") from error
        return clean(str(text))  # tool calls and names are not cleaned before

    def _spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """Where each assistant turn lies; only the last one where the template changes the messages' text."""
        spans = self._walk(messages, text)
        if not spans:
            answer = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            prompt = self._apply(messages[:answer], generation_prompt=True) if answer else ""
            return [(len(commonprefix([prompt, text])), len(text))]
        return spans

    def _walk(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
        """Follow the template's literal pieces through a rendered text; None where they do not fit."""
        roles = tuple(message["role"] for message in messages)
        pieces = self._literal(roles)
        if pieces is None:
            return None
        spans, cursor = [], len(pieces[0])
        for index, (message, after) in enumerate(zip(messages, pieces[1:], strict=True)):
            content = _shown(message["content"], after, text, cursor)
            if content is None:
                return None
            if message["role"] == "assistant" and content:
                closing = self._literal(roles[: index + 1])
                mark = closing[-1] if closing and after.startswith(closing[-1]) else ""
                spans.append((cursor, cursor + len(content) + len(mark)))
            cursor += len(content) + len(after)
        return spans if cursor == len(text) else None

    def _literal(self, roles: tuple[str, ...]) -> list[str] | None:
        """The text a template puts around the contents of messages with these roles; None if it cannot be told."""
        if roles not in self._pieces:
            self._pieces[roles] = self._probe(roles)
        return self._pieces[roles]

    def _probe(self, roles: tuple[str, ...]) -> list[str] | None:
        contents = [f"\N{SNOWMAN}{index}\N{SNOWMAN}" for index in range(len(roles))]
        try:
            text = self._apply([{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)])
        except ConversationError:
            return None
        pieces = []
        for content in contents:
            before, found, text = text.partition(content)
            if not found:
                return None
            pieces.append(before)
        return [*pieces, text]

    def _tokens(self, item: _Text, ids: list[int], offsets: list[tuple[int, int]]) -> Rendered:
        if not ids:
            return Rendered(status="empty", reason="the conversation has no tokens")
        starts, ends = zip(*offsets, strict=True)
        turns = []
        for begin, stop in item.spans:
            end = max(bisect_left(starts, stop) - 1, 0)  # the last of several tokens that share one character
            turns.append(Turn(min(bisect_right(ends, begin), end), end))
        ids = ids[: turns[-1].end + 1]  # nothing is read behind the last answer
        tokens = Tokens(ids, tuple(turns))
        kept = tokens if len(ids) <= self.max_length else truncate(tokens, self.max_length)
        texts = self._texts(item.text, tokens, len(ids) - len(kept.ids), offsets) if self.keep_texts else ()
        return Rendered(status="ok" if kept is tokens else "truncated", tokens=kept, texts=texts)

    def _texts(self, text: str, tokens: Tokens, gap: int, offsets: list[tuple[int, int]]) -> tuple[str, ...]:
        """What the tokens spell up to the end of each turn that is read, special tokens and the gap left out."""
        head = self.max_length // 4
        hidden = [offsets[index] for index, token in enumerate(tokens.ids) if token in self._special]
        if gap:
            hidden.append((offsets[head][0], offsets[head + gap][0]))
        ends = [offsets[turn.end][1] for turn in tokens.turns if not gap or not head <= turn.end < head + gap]
        return tuple(_without(text[:end], hidden) for end in ends)

    @cached_property
    def _special(self) -> frozenset[int]:
        """Ids of the tokens that stand for no text."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(index for index, token in added.items() if token.special)


def truncate(tokens: Tokens, length: int) -> Tokens:
    """Leave out the middle of a conversation: keep the first quarter of ``length`` tokens and the last three.

    Turns that end in the gap are not read; a turn whose prompt ends in the gap starts where the text goes on.
    """
    head = length // 4
    gap = len(tokens.ids) - length
    kept = [turn for turn in tokens.turns if turn.end < head or turn.end >= head + gap]
    moved = [Turn(_moved(turn.start, head, gap), _moved(turn.end, head, gap)) for turn in kept]
    return Tokens(tokens.ids[:head] + tokens.ids[head + gap :], tuple(moved))


def template_digest(tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of a tokenizer's chat template."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else repr(sorted((template or {}).items()))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """A text without some spans of its characters."""
    parts, cursor = [], 0
    for start, end in sorted(spans):
        parts.append(text[cursor : max(start, cursor)])
        cursor = max(cursor, end)
    return "".join([*parts, text[cursor:]])


def _moved(position: int, head: int, gap: int) -> int:
    return position if position < head else max(position - gap, head)


def _shown(content: str, after: str, text: str, cursor: int) -> str | None:
    """The content as the template shows it at ``cursor``, whole or stripped, with ``after`` behind it."""
    for shown in (content, content.strip()):
        if text.startswith(shown, cursor) and text.startswith(after, cursor + len(shown)):
            return shown
    return None
