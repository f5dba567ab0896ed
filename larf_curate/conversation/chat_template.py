"""Render and tokenize conversations with the model's own chat template, and locate their assistant turns.

A chat template does not report positions. So it is rendered once per sequence of roles with placeholder contents; the
literal text around the placeholders then locates the real contents in a rendered conversation, and the tokenizer's
character offsets convert these spans to token positions.
"""

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
    """The interface of a fast transformers tokenizer that this package uses."""

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
        """Added tokens by id, each with an attribute ``special``."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Convert token ids to text."""
        ...


@dataclass(frozen=True)
class Turn:
    """Token positions of one assistant turn.

    Args:
        start: Index of the answer's first token; ``start - 1`` is the last token of its prompt. 0 for text without a
            prompt.
        end: Index of the turn's last token, end-of-turn tokens included.
    """

    start: int
    end: int


@dataclass(frozen=True)
class Tokens:
    """One tokenized conversation.

    Args:
        ids: Token ids.
        turns: The assistant turns in order, at least one.
    """

    ids: list[int]
    turns: tuple[Turn, ...]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A tokenized row, or the reason why it cannot be tokenized.

    Args:
        status: ``ok``, ``truncated``, ``empty`` or ``malformed``.
        tokens: The tokens; None if the row is empty or malformed.
        reason: Why there are no tokens: what was wanted and what was found.
        texts: For each turn, the text of the conversation up to its end, without special tokens; empty unless the
            renderer has ``keep_texts``.
    """

    status: Status
    tokens: Tokens | None = None
    reason: str = ""
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class _RenderedText:
    """A rendered conversation, with the character span (start of answer, end of turn) of every assistant turn."""

    text: str
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class Renderer:
    """Renders rows with the chat template and tokenizes them.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        max_length: Longest conversation in tokens. A longer one loses its middle: the first quarter of ``max_length``
            and the end of its last turn (three quarters) are kept; see `truncate`.
        columns: Column names by role; default: inferred from the rows. See `to_conversation`.
        keep_texts: Whether `Rendered.texts` is filled, for text-only baselines.

    Raises:
        ModelError: If the tokenizer has no chat template, or is a slow one, which gives no character offsets.
    """

    tokenizer: Tokenizer
    max_length: int
    columns: Mapping[str, str] | None = None
    keep_texts: bool = False
    _literals: dict[tuple[str, ...], list[str] | None] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise ModelError("wanted a fast tokenizer (tokenizer.json), got a slow one: convert it with transformers")
        if not self.tokenizer.chat_template:
            raise ModelError(
                "the model has no chat template, so conversations cannot be formatted: "
                "use an instruct or chat model, or pass a template (chat_template=…, --chat-template FILE)"
            )

    @cached_property
    def template_digest(self) -> str:
        """Hex SHA-256 of the chat template."""
        return template_digest(self.tokenizer)

    def __call__(self, rows: Sequence[Row | None], schema: Schema | None = None) -> list[Rendered]:
        """Render and tokenize rows; a row that cannot be rendered gets a status instead of raising.

        Args:
            rows: The rows.
            schema: Format of all rows, if known; default: inferred for each row.

        Returns:
            One result per row, in order.
        """
        items = [self._try_render(row, schema) for row in rows]
        texts = [item.text for item in items if isinstance(item, _RenderedText)]
        # The template has already written the special tokens, so the tokenizer must not add them again.
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        encoded = self.tokenizer(texts, **options) if texts else {"input_ids": [], "offset_mapping": []}
        tokenized = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [self._locate(item, *next(tokenized)) if isinstance(item, _RenderedText) else item for item in items]

    def _try_render(self, row: Row | None, schema: Schema | None) -> _RenderedText | Rendered:
        try:
            conversation = to_conversation(row, self.columns, schema=schema)
            return self._render(conversation)
        except EmptyConversationError as error:
            return Rendered(status="empty", reason=str(error))
        except ConversationError as error:
            return Rendered(status="malformed", reason=str(error))

    def _render(self, conversation: Conversation) -> _RenderedText:
        if conversation.text is not None:
            return _RenderedText(conversation.text, [(0, len(conversation.text))])
        text = self._apply(conversation.messages)
        return _RenderedText(text, self._spans(conversation.messages, text))

    def _apply(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        except (TemplateError, TypeError, KeyError) as error:
            raise ConversationError(f"the model's chat template rejects the conversation: {error}") from error
        return clean(str(text))  # tool calls and names have not been cleaned yet

    def _spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """Character spans of the assistant turns; only of the last one if the template changes the contents."""
        spans = self._align(messages, text)
        if not spans:
            # The last answer begins where the conversation first differs from its prompt with a generation prompt.
            answer = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
            prompt = self._apply(messages[:answer], generation_prompt=True) if answer else ""
            return [(len(commonprefix([prompt, text])), len(text))]
        return spans

    def _align(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
        """Align the template's literal text with a rendered conversation; None if it does not match."""
        roles = tuple(message["role"] for message in messages)
        literals = self._literals_around(roles)
        if literals is None:
            return None
        spans, cursor = [], len(literals[0])
        for index, (message, after) in enumerate(zip(messages, literals[1:], strict=True)):
            content = _rendered_content(message["content"], after, text, cursor)
            if content is None:
                return None
            if message["role"] == "assistant" and content:
                # ``after`` may also open the next turn; a conversation that ends here shows the end-of-turn mark alone.
                closing = self._literals_around(roles[: index + 1])
                end_mark = closing[-1] if closing and after.startswith(closing[-1]) else ""
                spans.append((cursor, cursor + len(content) + len(end_mark)))
            cursor += len(content) + len(after)
        return spans if cursor == len(text) else None

    def _literals_around(self, roles: tuple[str, ...]) -> list[str] | None:
        """The template's literal text before, between and after messages of these roles; None if it has none."""
        if roles not in self._literals:
            self._literals[roles] = self._probe(roles)
        return self._literals[roles]

    def _probe(self, roles: tuple[str, ...]) -> list[str] | None:
        """Render placeholders, and split the result at them."""
        contents = [f"\N{SNOWMAN}{index}\N{SNOWMAN}" for index in range(len(roles))]
        try:
            text = self._apply([{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)])
        except ConversationError:
            return None
        literals = []
        for content in contents:
            before, found, text = text.partition(content)
            if not found:
                return None
            literals.append(before)
        return [*literals, text]

    def _locate(self, item: _RenderedText, ids: list[int], offsets: list[tuple[int, int]]) -> Rendered:
        """Convert character spans of the turns to token positions, and truncate."""
        if not ids:
            return Rendered(status="empty", reason="the conversation has no tokens")
        starts, ends = zip(*offsets, strict=True)
        turns = []
        for begin, stop in item.spans:
            end = max(bisect_left(starts, stop) - 1, 0)  # the last one where several tokens share a character
            turns.append(Turn(min(bisect_right(ends, begin), end), end))
        ids = ids[: turns[-1].end + 1]  # no state is read after the last answer
        tokens = Tokens(ids, tuple(turns))
        kept = tokens if len(ids) <= self.max_length else truncate(tokens, self.max_length)
        texts = self._texts(item.text, tokens, len(ids) - len(kept.ids), offsets) if self.keep_texts else ()
        return Rendered(status="ok" if kept is tokens else "truncated", tokens=kept, texts=texts)

    def _texts(self, text: str, tokens: Tokens, gap: int, offsets: list[tuple[int, int]]) -> tuple[str, ...]:
        """Text up to the end of each turn that is read, without special tokens and the ``gap`` truncated tokens."""
        head = self.max_length // 4
        omitted = [offsets[index] for index, token in enumerate(tokens.ids) if token in self._special_ids]
        if gap:
            omitted.append((offsets[head][0], offsets[head + gap][0]))
        ends = [offsets[turn.end][1] for turn in tokens.turns if not gap or not head <= turn.end < head + gap]
        return tuple(_without(text[:end], omitted) for end in ends)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which stand for no text of the conversation."""
        added = self.tokenizer.added_tokens_decoder
        return frozenset(index for index, token in added.items() if token.special)


def truncate(tokens: Tokens, length: int) -> Tokens:
    """Remove the middle of a conversation, keeping a quarter of ``length`` at its start and three quarters at its end.

    The start holds the instructions, and the end the last answer. Turns that end in the gap are dropped; a turn that
    starts in the gap starts at the first token after it.

    Args:
        tokens: A conversation of more than ``length`` tokens.
        length: Number of tokens to keep.

    Returns:
        The remaining tokens, with turns at their new positions.
    """
    head = length // 4
    gap = len(tokens.ids) - length
    kept = [turn for turn in tokens.turns if turn.end < head or turn.end >= head + gap]
    shifted = [Turn(_shifted(turn.start, head, gap), _shifted(turn.end, head, gap)) for turn in kept]
    return Tokens(tokens.ids[:head] + tokens.ids[head + gap :], tuple(shifted))


def template_digest(tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of a tokenizer's chat template."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else repr(sorted((template or {}).items()))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _without(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """Remove spans of characters, which may overlap, from a text."""
    parts, cursor = [], 0
    for start, end in sorted(spans):
        parts.append(text[cursor : max(start, cursor)])
        cursor = max(cursor, end)
    return "".join([*parts, text[cursor:]])


def _shifted(position: int, head: int, gap: int) -> int:
    """Position of a token after ``gap`` tokens from ``head`` on are removed."""
    return position if position < head else max(position - gap, head)


def _rendered_content(content: str, after: str, text: str, cursor: int) -> str | None:
    """The content as the template renders it at ``cursor``, unchanged or stripped, if ``after`` follows; else None."""
    for rendered in (content, content.strip()):
        if text.startswith(rendered, cursor) and text.startswith(after, cursor + len(rendered)):
            return rendered
    return None
