"""The turns of a row as text for people: what the chat template is given, with thoughts, calls, tools and media."""

import json
from collections.abc import Mapping
from typing import Any

from larf_curate.conversation.messages import CALL_KEYS, THOUGHT_KEYS, Message
from larf_curate.conversation.schemas import ARGUMENTS, Row, to_conversation


def display_turns(row: Row, columns: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """Role and text of each turn of a row, after its tools and documents.

    Args:
        row: A dataset row.
        columns: Column names by role; default: inferred from the row.

    Raises:
        ConversationError: If the row is not a conversation with an assistant turn.
    """
    conversation = to_conversation(row, columns)
    given = [(name, as_json(conversation.arguments[name])) for name in ARGUMENTS if conversation.arguments.get(name)]
    return [*given, *((message["role"], display_text(message)) for message in conversation.messages)]


def display_text(message: Message) -> str:
    """The thought of a message, its text with a name in brackets for each image, audio or video, and its calls."""
    content = message["content"]
    parts = [content] if isinstance(content, str) else [part.get("text", f"[{part['type']}]") for part in content]
    thoughts = [f"[thought] {message[key]}" for key in THOUGHT_KEYS if message.get(key)]
    calls = [as_json(message[key]) for key in CALL_KEYS if message.get(key)]
    return "\n".join(text for text in (*thoughts, "".join(parts), *calls) if text)


def as_json(value: Any) -> str:  # noqa: ANN401  any JSON value
    """A value as readable JSON."""
    return json.dumps(value, ensure_ascii=False, default=str)
