"""Replace the answer of a row: the text of its last assistant turn, in whichever format the row has."""

import json
from collections.abc import Mapping
from typing import Any

from larf_curate.conversation.schemas import ROLES, schema_for, to_messages
from larf_curate.errors import ConversationError

Row = dict[str, Any]


def answer(row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> str:
    """The text of the last assistant turn.

    Args:
        row: A dataset row.
        columns: Column names by role.

    Raises:
        ConversationError: If the row is not a conversation with an assistant turn.
    """
    return str([message for message in to_messages(row, columns) if message["role"] == "assistant"][-1]["content"])


def replace_answer(row: Mapping[str, Any], text: str, columns: Mapping[str, str] | None = None) -> Row:
    """A copy of a row with another text in its last assistant turn; everything else, types too, stays.

    Args:
        row: A dataset row.
        text: The new text.
        columns: Column names by role.

    Raises:
        ConversationError: If the row is not a conversation with an assistant turn, or does not read back as the text.
    """
    column = _answer_column(row, columns)
    changed = dict(row) | {column: _replaced(row[column], text)}
    if answer(changed, columns) != text:
        raise ConversationError(f"cannot put the corrected answer into column {column!r}: edit the row by hand")
    return changed


def _answer_column(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> str:
    """The column that holds the last assistant turn: of each format's columns the last one."""
    if columns and not columns.keys() & {"assistant", "messages", "text"}:
        raise ConversationError("columns must name the assistant's text: assistant=…, messages=… or text=…")
    return schema_for(row, columns).columns[-1]


def _replaced(value: object, text: str) -> Any:  # noqa: ANN401  whatever the column holds
    if isinstance(value, str) or value is None:
        return text
    if isinstance(value, Mapping):  # a dict of lists, as older datasets give messages
        role, content = _keys(value)
        index = _last_assistant(value[role])
        return dict(value) | {content: _with(value[content], index, _content(value[content][index], text))}
    if isinstance(value, list) and value and isinstance(value[0], str):  # messages in a JSON column
        return [json.dumps(message) for message in _replaced([json.loads(message) for message in value], text)]
    if isinstance(value, list):
        role, content = _keys(value[-1] if value else {})
        index = _last_assistant([message.get(role) for message in value])
        message = dict(value[index])
        return _with(value, index, message | {content: _content(message.get(content), text)})
    raise ConversationError(f"wanted text or messages, got {type(value).__name__}")


def _keys(message: object) -> tuple[str, str]:
    """The names under which a message has its role and its text."""
    if isinstance(message, Mapping):
        for role, content in (("role", "content"), ("from", "value")):
            if role in message:
                return role, content
    raise ConversationError("wanted messages with role and content, or with from and value")


def _last_assistant(roles: list[Any]) -> int:
    found = [i for i, role in enumerate(roles) if isinstance(role, str) and ROLES.get(role.lower()) == "assistant"]
    if not found:
        raise ConversationError("wanted an assistant turn, got none: there is no answer to correct")
    return found[-1]


def _content(old: object, text: str) -> object:
    """The text in the form of the old content: a string, or a list with one text part."""
    if not isinstance(old, list) or not old:
        return text
    first = old[0]
    return [dict(first) | {"text": text} if isinstance(first, Mapping) else text]


def _with(items: list[Any], index: int, item: object) -> list[Any]:
    return [*items[:index], item, *items[index + 1 :]]
