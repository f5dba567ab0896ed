"""Apply a model's chat template: the one that applies to a row, contents in the form that it takes, at a fixed date."""

import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, lru_cache
from typing import Any, Protocol

from jinja2 import Environment, TemplateError

from larf_curate.conversation.messages import (
    CALL_KEYS,
    GIVEN_ROLE,
    LEARNED,
    LEARNED_KEYS,
    MEDIA,
    THOUGHT_KEYS,
    Message,
    UnsupportedContentError,
    clean,
)
from larf_curate.conversation.truncation import Span
from larf_curate.errors import ConversationError, ModelError

logger = logging.getLogger(__name__)
MAX_CHARACTERS = 1_000_000
"""Longest chat template; the longest that TRL ships has 20,000 characters."""
MAX_SECONDS = 20
"""Longest time that a template may take for a conversation of two short turns."""
MAX_TEXT = 100_000_000
"""Longest rendered conversation in characters."""
TEMPLATE_ERRORS = (
    TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
    MemoryError,
)
"""Errors of a template that does not accept a conversation."""
RESERVED = frozenset(
    ("conversation", "tokenize", "add_generation_prompt", "continue_final_message", "chat_template", "return_dict")
)
"""Arguments of `apply_chat_template` that say what is rendered and returned, not how."""
TOKENIZING = frozenset(("padding", "truncation", "max_length", "return_tensors"))
"""Arguments of `apply_chat_template` for the tokenizer, which no template reads."""
NOW = "strftime_now"
"""Function of transformers that writes today's date into a template."""
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""What begins a block that trainers learn; as transformers and TRL look for it."""
_DEVELOPER = re.compile(r"['\"]developer['\"]")
PROBE = ("\N{SNOWMAN}0\N{SNOWMAN}", "\N{SNOWMAN}1\N{SNOWMAN}")
"""Texts that no template changes."""


class Encoding(Protocol):
    """A text as a fast tokenizer encodes it."""

    @property
    def ids(self) -> list[int]:
        """Token ids."""
        ...

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """First character of each token, and the one behind its last."""
        ...

    def token_to_chars(self, token_index: int) -> tuple[int, int]:
        """First character of a token, and the one behind its last: one item of ``offsets``, which copies them all."""
        ...


class Tokenizer(Protocol):
    """The interface of a fast transformers tokenizer that this package uses."""

    is_fast: bool
    chat_template: str | dict[str, str] | None
    bos_token: str | None
    special_tokens_map: Mapping[str, Any]

    def __call__(self, text: Sequence[str], **options: bool) -> Any:  # noqa: ANN401  a BatchEncoding
        """Tokenize texts."""
        ...

    def apply_chat_template(self, conversation: Sequence[Message], **options: object) -> Any:  # noqa: ANN401
        """Render a conversation."""
        ...

    def get_vocab(self) -> dict[str, int]:
        """Ids by token."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Added tokens by id, each with an attribute ``special``."""
        ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """Convert token ids to text."""
        ...


@dataclass(frozen=True)
class ChatTemplate:
    """Renders messages as a trainer does.

    Args:
        tokenizer: A tokenizer with a chat template. Of several named ones the template ``tool_use`` is used for rows
            with tools, and else ``default``, as in transformers.
        day: Day of dates that the template writes; default: today. A profile fixes it, so that a score is the same
            tomorrow.

    Raises:
        ModelError: If there is no chat template, or none by default, or it does not show the texts of a conversation.
    """

    tokenizer: Tokenizer
    day: date | None = None
    _joins: dict[int, bool] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        template = self.tokenizer.chat_template
        if not template:
            raise ModelError(
                "the model has no chat template, so conversations cannot be formatted: "
                "use an instruct or chat model, or pass a template (chat_template=…, --chat-template FILE)"
            )
        if isinstance(template, Mapping) and "default" not in template:
            raise ModelError(
                f"the model has the chat templates {', '.join(sorted(template))} and no default: choose one "
                "(--template-name NAME), or pass a template (--chat-template FILE)"
            )
        if sum(map(len, self._sources.values())) > MAX_CHARACTERS:
            raise ModelError(f"the model's chat template has more than {MAX_CHARACTERS:,} characters: pass another one")

    def __call__(
        self,
        messages: Sequence[Message],
        arguments: Mapping[str, Any] | None = None,
        *,
        generation_prompt: bool = False,
    ) -> str:
        """Render messages.

        Args:
            messages: The messages.
            arguments: Further arguments of the template.
            generation_prompt: Whether the header of an answer is added.

        Raises:
            UnsupportedContentError: If there are images, audio or video, and the template does not take them.
            ConversationError: If the template rejects the conversation; the message has its own words.
        """
        arguments = dict(arguments or {})
        source = self._source(arguments)
        given = [self._prepared(message, source) for message in messages]
        if reserved := sorted(RESERVED & arguments.keys()):
            raise ConversationError(
                f"chat_template_kwargs have {', '.join(reserved)}, which no row can set: remove them"
            )
        with _rejecting():
            _bound(source)
            text = self.tokenizer.apply_chat_template(
                given, tokenize=False, add_generation_prompt=generation_prompt, chat_template=source, **arguments
            )
            if len(text) > MAX_TEXT:
                raise _TooLongError
        return str(clean(str(text)))

    def blocks(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> list[Span] | None:
        """Spans of characters that the template marks for training with ``{% generation %}``, as transformers has them.

        Args:
            messages: Messages that the template renders.
            arguments: Further arguments of the template.

        Returns:
            The spans, some of which may be empty; None if the template has no such blocks.

        Raises:
            ConversationError: If the template rejects the conversation.
        """
        if not self.marks_answers(arguments):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self._source(arguments)
        with _rejecting():
            _, [spans] = render_jinja_template(
                [[self._prepared(message, source) for message in messages]],
                chat_template=source,
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **arguments},
            )
        return list(spans)

    def marks_answers(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the template for a row with these arguments marks what is learned, with ``{% generation %}``."""
        return bool(_GENERATION.search(self._source(arguments)))

    def unread(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> list[str]:
        """Names of arguments and message keys that the template does not read."""
        keys = {key for message in messages for key in (*CALL_KEYS, *THOUGHT_KEYS) if message.get(key)}
        names = {*keys, *arguments} - TOKENIZING
        if not names:
            return []
        source = self._source(arguments)
        return sorted(name for name in names if not _mentions(source, name))

    def without_unread(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> Sequence[Message]:
        """Messages without those flags and empty values that the template does not read: it renders them alike."""
        source = self._source(arguments)
        keys = {key for message in messages for key in message} - {"role", "content", LEARNED, GIVEN_ROLE}
        unread = {key for key in keys if not _mentions(source, key)}
        if not unread:
            return messages
        return [
            {key: value for key, value in message.items() if key not in unread or value and key not in LEARNED_KEYS}
            for message in messages
        ]

    def takes_developer(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the template for a row with these arguments knows the role ``developer``."""
        return bool(_DEVELOPER.search(self._source(arguments)))

    @cached_property
    def _sources(self) -> dict[str, str]:
        """The templates by name, with fixed dates."""
        template = self.tokenizer.chat_template or ""
        named = dict(template) if isinstance(template, Mapping) else {"default": template}
        return {name: with_day(source, self.day) if self.day else source for name, source in named.items()}

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template shows contents only as lists of parts, as those of some vision models do."""
        takes_parts = not self._shows(PROBE) and self._shows([[{"type": "text", "text": text}] for text in PROBE])
        if takes_parts:
            logger.warning("the chat template shows contents only as lists of parts: texts are passed to it as such")
        return takes_parts

    def joins(self, count: int) -> bool:
        """Whether the template shows contents of so many text parts as it shows the parts joined to one text."""
        if count not in self._joins:
            lists = [[{"type": "text", "text": f" {text} "}] * count for text in PROBE]
            texts = [f" {text} " * count for text in PROBE]
            self._joins[count] = False
            with suppress(ConversationError):
                self._joins[count] = self(_two_turns(lists)) == self(_two_turns(texts))
        return self._joins[count]

    def _shows(self, contents: Sequence[object]) -> bool:
        """Whether the template shows two short turns with these contents.

        Raises:
            ModelError: If it takes longer than `MAX_SECONDS`.
        """
        messages = _two_turns(contents)
        found: list[str] = []

        def render() -> None:
            with suppress(*TEMPLATE_ERRORS):
                source = self._source({})
                found.append(self.tokenizer.apply_chat_template(messages, tokenize=False, chat_template=source))

        thread = threading.Thread(target=render, daemon=True)
        thread.start()
        thread.join(MAX_SECONDS)
        if thread.is_alive():
            raise ModelError(
                f"the model's chat template takes more than {MAX_SECONDS} s for two short turns: pass another one "
                "(chat_template=…, --chat-template FILE)"
            )
        return all(text in "".join(found) for text in PROBE)

    def _source(self, arguments: Mapping[str, Any]) -> str:
        """The template for a row with these arguments, as transformers chooses it."""
        named = self._sources
        return named["tool_use"] if arguments.get("tools") is not None and "tool_use" in named else named["default"]

    def _prepared(self, message: Message, source: str) -> Message:
        """A message as the template takes it: with the keys that it reads, contents as text or as parts."""
        content = message["content"]
        if isinstance(content, list) and not (kinds := self._kinds_shown(source)) >= (
            missing := {part["type"] for part in content} - {"text"}
        ):
            raise UnsupportedContentError(
                f"the model's chat template does not take {' and '.join(sorted(missing - kinds))} in a message"
            )
        if self.takes_parts and isinstance(content, str):
            content = [{"type": "text", "text": content}] if content else []
        kept = {"role": message["role"], "content": content}
        if len(message) > len(kept):
            keys = [key for key in message if key not in kept and (key in source or key in THOUGHT_KEYS)]
            kept |= {key: message[key] for key in keys if key not in (LEARNED, GIVEN_ROLE)}
            if GIVEN_ROLE in message and _DEVELOPER.search(source):
                kept["role"] = message[GIVEN_ROLE]
        return kept

    def _kinds_shown(self, source: str) -> set[str]:
        """Kinds of parts beside text that the template mentions."""
        return {kind for kind in MEDIA if re.search(rf"['\".]{kind}\b", source)}


def _mentions(source: str, name: str) -> bool:
    """Whether a template has the name of a key or argument; transformers gives a thought all names of thoughts."""
    return any(key in source for key in (THOUGHT_KEYS if name in THOUGHT_KEYS else (name,)))


def _two_turns(contents: Sequence[object]) -> list[Message]:
    """A short conversation with these contents."""
    return [{"role": role, "content": content} for role, content in zip(("user", "assistant"), contents, strict=True)]


class _TooLongError(TemplateError):
    """A template has written more than `MAX_TEXT` characters."""


@contextmanager
def _rejecting() -> Iterator[None]:
    """Raise errors of a template as `ConversationError` with its own words."""
    try:
        yield
    except _TooLongError as error:
        raise ConversationError(
            f"wanted at most {MAX_TEXT:,} characters, got more from the model's chat template: "
            "shorten the row, or pass another template"
        ) from error
    except TEMPLATE_ERRORS as error:
        reason = str(error) or type(error).__name__  # some have no words
        raise ConversationError(f"the model's chat template rejects the conversation: {reason}") from error


@lru_cache(maxsize=64)
def _bound(source: str) -> None:
    """Let a template stop once it has written too much; otherwise it is rejected only after it has written all."""
    with suppress(ImportError):  # the environment in which transformers renders has no public name
        from transformers.utils.chat_template_utils import _compile_jinja_template

        _compile_jinja_template(source).environment.concat = _join


def _join(parts: Iterable[str]) -> str:
    """Join what a template writes.

    Raises:
        _TooLongError: As soon as it is more than `MAX_TEXT` characters; what follows is not rendered.
    """
    kept, size = [], 0
    for part in parts:
        kept.append(part)
        size += len(part)
        if size > MAX_TEXT:
            raise _TooLongError
    return "".join(kept)


def with_day(source: str, day: date) -> str:
    """A template that writes another day's date than today's.

    Args:
        source: The template; it may call ``strftime_now`` with formats that it has as literal texts.
        day: The day.
    """
    if NOW not in source:
        return source
    literals = {text[1:-1] for _, kind, text in Environment().lex(source) if kind == "string"}
    formats = sorted(text for text in literals if "%" in text)
    dates = json.dumps({text: day.strftime(text) for text in formats}, ensure_ascii=False)
    macro = (
        f"{{%- macro {NOW}(format) -%}}{{%- set dates = {dates} -%}}"
        "{{- dates[format] if format in dates else raise_exception('the date format ' ~ format ~ ' is not known') -}}"
        "{%- endmacro %}"
    )
    return macro + ("\n" if source.startswith("\n") else "") + source


def template_digest(tokenizer: Tokenizer) -> str:
    """Hex SHA-256 of a tokenizer's chat template."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else repr(sorted((template or {}).items()))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
