"""Read or replace the answer of a row, which is the text of its last assistant turn, in any recognised format."""

import json
from collections.abc import Mapping
from typing import Any

from larf_curate.conversation.messages import role_name
from larf_curate.conversation.schemas import check_columns, further_roles, schema_for, to_messages
from larf_curate.errors import ConversationError

Row = dict[str, Any]


def answer(row: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> str:
    """Return the text of the last assistant turn.

    Args:
        row: A dataset row.
        columns: Column names by role; default: inferred from the row.

    Raises:
        ConversationError: If the row is not a conversation with an assistant turn.
    """
    return str([message for message in to_messages(row, columns) if message["role"] == "assistant"][-1]["content"])


def replace_answer(row: Mapping[str, Any], text: str, columns: Mapping[str, str] | None = None) -> Row:
    """Copy a row with a new text in its last assistant turn; all other values and types are unchanged.

    Args:
        row: A dataset row.
        text: The new text.
        columns: Column names by role; default: inferred from the row.

    Raises:
        ConversationError: If the row is not a conversation with an assistant turn, or the new text cannot be stored in
            its format without loss.
    """
    column = _answer_column(row, columns)
    roles = further_roles(columns)
    changed = dict(row) | {column: _replace_in_cell(row[column], text, roles)}
    # Reading a row normalises its text (lone surrogates are replaced, for example), so verify what was stored.
    try:
        stored, cause = answer(changed, columns), ""
    except ConversationError as error:
        stored, cause = None, f" ({error})"
    if stored != text:
        raise ConversationError(f"cannot store the corrected answer in column {column!r}{cause}: edit the row by hand")
    return changed


def _answer_column(row: Mapping[str, Any], columns: Mapping[str, str] | None) -> str:
    """Name of the column with the last assistant turn, which every schema lists last."""
    check_columns(row, columns or {})
    return schema_for(row, columns).columns[-1]


def _replace_in_cell(value: object, text: str, roles: Mapping[str, str]) -> Any:  # noqa: ANN401  any value of the column
    """Replace the answer in the value of its column: a text, or messages in any form that `schemas` reads."""
    if isinstance(value, str) and (messages := _json_messages(value)):
        return json.dumps(_replace_in_cell(messages, text, roles))
    if value is None or isinstance(value, str | int | float):
        return text
    if isinstance(value, Mapping) and any(isinstance(value.get(key), str) for key in ("role", "from")):
        return _replace_in_cell([value], text, roles)[0]
    if isinstance(value, Mapping):  # a dict of lists, the form of messages in older versions of `datasets`
        role_key, content_key = _message_keys(value)
        index = _last_assistant(value[role_key], roles)
        contents = value[content_key]
        return dict(value) | {content_key: _with_item(contents, index, _new_content(contents[index], text))}
    if isinstance(value, list) and value and isinstance(value[0], str):  # messages in a JSON column
        messages = _replace_in_cell([json.loads(message) for message in value], text, roles)
        return [json.dumps(message) for message in messages]
    if isinstance(value, list):
        role_key, content_key = _message_keys(value[-1] if value else {})
        index = _last_assistant([message.get(role_key) for message in value], roles)
        message = dict(value[index])
        return _with_item(value, index, message | {content_key: _new_content(message.get(content_key), text)})
    raise ConversationError(f"wanted text or messages, got {type(value).__name__}: edit the row by hand")


def _message_keys(message: object) -> tuple[str, str]:
    """Names of the role and content keys: those of OpenAI or of ShareGPT."""
    if isinstance(message, Mapping):
        for role_key, content_key in (("role", "content"), ("from", "value")):
            if role_key in message:
                return role_key, content_key
    raise ConversationError("wanted messages with role and content, or with from and value")


def _json_messages(text: str) -> list[Any] | None:
    """The messages in a JSON text; None if it is another text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_chat = isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    return value if is_chat and {"role", "from"} & set(value[-1]) else None


def _last_assistant(names: list[Any], roles: Mapping[str, str]) -> int:
    """Index of the last assistant message."""
    found = [i for i, name in enumerate(names) if role_name(name, roles) == "assistant"]
    if not found:
        raise ConversationError("wanted an assistant turn, got none: there is no answer to correct")
    return found[-1]


def _new_content(old: object, text: str) -> object:
    """The new text in the form of the old content: a string, or a list with a single text part."""
    if not isinstance(old, list) or not old:
        return text
    first = old[0]
    return [dict(first) | {"text": text} if isinstance(first, Mapping) else text]


def _with_item(items: list[Any], index: int, item: object) -> list[Any]:
    return [*items[:index], item, *items[index + 1 :]]
