"""Parse chat messages in the forms that datasets store: roles by any usual name, contents as text, parts or numbers."""

import datetime
import decimal
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from larf_curate.errors import ConversationError

Message = dict[str, Any]
"""A chat message: ``role``, ``content`` and the other keys that a template may read, such as ``tool_calls``.

``content`` is a string, or a list of parts if there are images, audio or video among them.
"""

ROLES = {
    **dict.fromkeys(("system", "developer", "system_prompt", "system_message"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatbot", "model", "chatgpt", "ai", "llm"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "environment", "ipython"), "tool"),
    **dict.fromkeys(("tool_response", "tool_result", "tool_results", "function_response", "function_result"), "tool"),
}
"""Normalised role by the name that a dataset may use, as `role_name` spells it."""

PLAIN = (
    *(str, bytes, bool, int, float, decimal.Decimal, type(None)),
    *(datetime.date, datetime.time, datetime.timedelta),
)
"""Types of the values of cells, as `datasets` gives them."""

DEVELOPER = "developer"
"""A role that some templates tell from ``system``; they are given it as it is."""
GIVEN_ROLE = "given_role"
"""Key of a message with the role that a template may know beside the normalised one: ``developer``."""
MESSAGE_KEYS = (("role", "from"), ("content", "value"))
"""Keys of a message's role and content, as OpenAI and as ShareGPT name them."""
OTHER_CONTENT = ("text", "message", "parts")
"""Keys under which other formats, such as Cohere's and Gemini's, have what is ``content`` here."""
MESSAGE = "a message with role and content, or from and value"
LEARNED = "learned"
"""Key of a message that is not learned: False if one of `LEARNED_KEYS` says so, None as part of a prompt."""
LEARNED_KEYS = ("weight", "train", "loss")
"""Keys that say with 0 or false that a trainer does not learn an assistant message."""
UNREAD_FLAGS = ("training", "trainable")
"""Keys that look like these, but are not read."""
_READ_KEYS = frozenset(key for pair in MESSAGE_KEYS for key in pair)
CALL_KEYS = ("tool_calls", "function_call")
"""Keys with the calls of tools of a message; the second is OpenAI's older one, which few templates read."""
THOUGHT_START, THOUGHT_END = "<think>", "</think>"
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys with what a model thought before its answer; each template reads one of them."""
MEDIA = ("image", "audio", "video")
"""Kinds of parts that are no text; their types and keys begin or end with these words."""


class EmptyConversationError(ConversationError):
    """A row has no assistant turn with text, so there is nothing to score."""


class UnsupportedContentError(ConversationError):
    """A row has contents that the model's chat template cannot render as text."""


def role_name(role: object, others: Mapping[str, str] | None = None) -> str:
    """Normalise a role.

    Args:
        role: A role as a dataset names it: upper case, hyphens, signs around it and all from a first digit on
            (``GPT-4o``, ``gpt-3.5-turbo``, ``User 1``) are ignored.
        others: Normalised roles by further names; they come before `ROLES`.

    Raises:
        ConversationError: If the role is unknown.
    """
    if isinstance(role, str):
        if not others and role in ROLES:
            return ROLES[role]
        plain = role.strip().lower()
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", role)  # functionCall
        bare = re.sub(r"^[\W_]+|[\W_]*(\d.*)?$", "", plain)
        names = (plain, bare, *(re.sub(r"[\s-]+", "_", name) for name in (bare, words.strip().lower())))
        if known := next((found for name in names if (found := (others or {}).get(name) or ROLES.get(name))), None):
            return known
    raise ConversationError(
        f"unknown role {role!r:.80}: wanted system, user, assistant, tool or a usual name of these, "
        "or say which it is (--columns role:NAME=user)"
    )


def messages_of(value: object, roles: Mapping[str, str] | None = None) -> list[Message]:
    """Parse a list of role/content or from/value messages.

    Args:
        value: The list; also the dict of lists that older versions of `datasets` returned, and both as JSON, whole or a
            string for each message.
        roles: Normalised roles by further names.

    Raises:
        EmptyConversationError: If there are no messages.
        ConversationError: If the value is something else, or a message is malformed.
    """
    if value is None:
        raise EmptyConversationError("wanted messages, got none: there is nothing to score")
    if isinstance(value, str):
        value = parsed(value, "a list of messages")
    if isinstance(value, Mapping):
        value = _transpose(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise wrong("a list of messages", value)
    return [_chat_message(item, roles) for item in value]


def message_of(role: str, content: object, **others: object) -> Message:
    """A message with normalised content.

    Args:
        role: A normalised role.
        content: Text, a number or a date, or a list of parts.
        others: Further keys; those that are None are left out, as transformers does before it renders, and empty
            values are kept, which some templates tell from absent ones.

    Raises:
        EmptyConversationError: If there is no content.
        ConversationError: If the content is something else, or the text is under another key.
    """
    if isinstance(content, str) and not others:
        return {"role": role, "content": content}
    others = {key: json_value(value) for key, value in others.items() if value is not None}
    if content is None:
        if any(others.get(key) for key in (*CALL_KEYS, *THOUGHT_KEYS)):
            return {"role": role, "content": "", **others}
        if other := next((key for key in OTHER_CONTENT if isinstance(others.get(key), str | list)), None):
            raise ConversationError(
                f"wanted the text of the {role} turn under content or value, got it under {other}: rename the key"
            )
        raise EmptyConversationError(f"wanted text for the {role} turn, got none: fill or remove the row")
    return {"role": role, "content": _content(role, content), **others}


def text_of(message: Message) -> str:
    """The text of a message; of several parts, the text parts together."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)


def has_content(message: Message) -> bool:
    """Whether a message has text, calls of tools or a thought."""
    return bool(text_of(message).strip() or any(message.get(key) for key in (*CALL_KEYS, *THOUGHT_KEYS)))


def is_learned(message: Message) -> bool:
    """Whether a trainer learns a message: one of the assistant that no key says 0 or false of."""
    return message["role"] == "assistant" and bool(message.get(LEARNED, True))


def is_excluded(message: Message) -> bool:
    """Whether a key of an assistant message says 0 or false, unlike one that is not learned as part of a prompt."""
    return message["role"] == "assistant" and message.get(LEARNED, True) is False


def parsed(text: str, wanted: str) -> Any:  # noqa: ANN401  any JSON value
    """Parse JSON.

    Raises:
        ConversationError: If the text is not JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise wrong(wanted, text) from None


def json_value(value: Any) -> Any:  # noqa: ANN401  any value of a row
    """A value as JSON has it: keys and all that is no number, truth value or None as text."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    return value if isinstance(value, str | bool | int | float | None) else str(value)


def foreign_type(value: object) -> str | None:
    """Name of the type of a part of a value that neither JSON nor Arrow has; None if there is no such part.

    Args:
        value: A row or a cell, nested to any depth.
    """
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            left.extend([*part.keys(), *part.values()])
        elif isinstance(part, list | tuple):
            left.extend(part)
        elif not isinstance(part, PLAIN):
            return type(part).__name__
    return None


def clean(value: Any) -> Any:  # noqa: ANN401  any JSON value
    """Join surrogate pairs and replace lone surrogates, which fast tokenizers reject, in all texts of a value."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {clean(key): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, list | tuple) else value


def clean_message(message: Message) -> Message:
    """A message with `clean` texts."""
    content = message["content"]
    plain = len(message) == 2 and isinstance(content, str) and content.isascii()
    return message if plain else {key: clean(value) for key, value in message.items()}


def wrong(wanted: str, got: object) -> ConversationError:
    """The error of a value of another type."""
    return ConversationError(f"wanted {wanted}, got {type(got).__name__} {got!r:.80}")


def _chat_message(item: object, roles: Mapping[str, str] | None) -> Message:
    if isinstance(item, str):  # a JSON column
        item = parsed(item, MESSAGE)
    if not isinstance(item, Mapping):
        raise wrong(MESSAGE, item)
    # Rows of mixed origin have both spellings, one of them null: take the one with a value.
    role, content = (item[a] if item.get(a) is not None else item.get(b) for a, b in MESSAGE_KEYS)
    if role is None:
        raise ConversationError(f"wanted {MESSAGE}, got one with the keys {sorted(map(str, item))!s:.80}: convert it")
    is_bare = len(item) == 2 and content is not None
    others = {} if is_bare else {str(key): value for key, value in item.items() if key not in _READ_KEYS}
    message = message_of(role_name(role, roles), content, **others)
    if isinstance(role, str) and message["role"] == "system" and role.strip().lower() == DEVELOPER:
        message[GIVEN_ROLE] = DEVELOPER
    learned = all(_is_set(key, item[key]) for key in LEARNED_KEYS if item.get(key) is not None)
    return message if learned else message | {LEARNED: False}


def _is_set(key: str, flag: object) -> bool:
    """Whether a flag of a message says yes: a number or truth value, also as text."""
    words = {"true": True, "false": False}
    if isinstance(flag, str):
        with suppress(ValueError):
            flag = words[flag.lower()] if flag.lower() in words else float(flag)
    if isinstance(flag, bool | int | float):
        return bool(flag)
    raise wrong(f"a number, true or false as {key} of a message", flag)


def _content(role: str, content: object) -> str | list[Message]:
    if isinstance(content, str):
        return content
    if isinstance(content, bool | int | float | decimal.Decimal | datetime.date | datetime.time):
        return str(content)
    if not isinstance(content, Sequence):
        raise wrong(f"text for the {role} turn", content)
    parts = [_part(part) for part in content]
    return parts if any("text" not in part for part in parts) else "".join(part["text"] for part in parts)


def _part(part: object) -> Message:
    """A part of a content list: a text, or what a template shows for an image, audio or video."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Mapping):
        kind = part.get("type")
        if isinstance(part.get("text"), str) and kind in (None, "text", "input_text", "output_text"):
            return {"type": "text", "text": part["text"]}
        names = [kind] if isinstance(kind, str) else [key for key in part if part[key] is not None]
        if medium := next((medium for name in names for medium in MEDIA if medium in str(name)), None):
            return {"type": medium}  # the template writes a placeholder; the medium itself is not read
    raise wrong("a text part of a message", part)


def _transpose(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert a dict of lists to a list of dicts."""
    columns = list(value.values())
    if not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        raise wrong("a list of messages", value)
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]
