"""Parse dataset rows as conversations: schemas by column names, normalised roles and contents.

Recognised columns: ``messages``, ``conversations`` (ShareGPT), ``prompt``/``completion`` and ``prompt``/``chosen``
(TRL), ``prompt``/``response``, ``instruction``/``input``/``output`` (Alpaca), ``instruction``/``context``/``response``
(Dolly), ``question``/``answer`` (GSM8K), ``text``, or columns named by the user.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from larf_curate.errors import ConversationError

Row = Mapping[str, Any]
Message = dict[str, Any]
"""A chat message: ``role``, ``content`` (a string) and optional keys that templates read (``tool_calls``, ``name``)."""

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
"""Normalised role by the name that a dataset may use, in lower case."""

MESSAGE_KEYS = (("role", "from"), ("content", "value"))
"""Keys of a message's role and content, as OpenAI and as ShareGPT name them."""


class EmptyConversationError(ConversationError):
    """A row has no assistant turn with text, so there is nothing to score."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The conversation that a row trains a model on.

    Args:
        messages: The chat messages with normalised roles and contents; at least one assistant message has text or tool
            calls.
        text: Text of a row that is already rendered (a ``text`` column), to be used without a chat template; else None.
    """

    messages: list[Message]
    text: str | None = None


@dataclass(frozen=True)
class Schema:
    """A row format: the columns that store a conversation, and how they are read.

    Args:
        columns: The required columns, with the column of the answer last.
        read: Function that reads the messages of a row.
        plain: Whether rows are already rendered as text, so that no chat template is applied.
    """

    columns: tuple[str, ...]
    read: Callable[[Row], list[Message]]
    plain: bool = False


def to_conversation(
    row: Row | None, columns: Mapping[str, str] | None = None, *, schema: Schema | None = None
) -> Conversation:
    """Parse a row as a conversation.

    Args:
        row: A dataset row.
        columns: Column names by role (``{"user": "q", "assistant": "a"}``; also ``system``, ``messages`` and ``text``);
            default: inferred from the row's column names.
        schema: The row's format, if already known: it is the same for all rows of a dataset. Takes precedence over
            ``columns``.

    Returns:
        The conversation; lone surrogates are replaced, all other text is unchanged.

    Raises:
        EmptyConversationError: If no assistant turn has text.
        ConversationError: If the row has no recognised format, or a message is malformed.
    """
    if row is None:
        raise EmptyConversationError("wanted a row, got None: remove or fill it")
    if not isinstance(row, Mapping):
        raise _wrong("a row with named columns", row)
    schema = schema or schema_for(row, columns)
    messages = [message | {"content": clean(message["content"])} for message in schema.read(row)]
    if not any(m["role"] == "assistant" and (m["content"].strip() or m.get("tool_calls")) for m in messages):
        raise EmptyConversationError("wanted an assistant turn with text, got none: there is nothing to score")
    return Conversation(messages=messages, text=messages[0]["content"] if schema.plain else None)


def to_messages(row: Row, columns: Mapping[str, str] | None = None) -> list[Message]:
    """Parse a row as chat messages; see `to_conversation` for arguments and errors."""
    return to_conversation(row, columns).messages


def schema_for(available: Iterable[str], columns: Mapping[str, str] | None) -> Schema:
    """Return the schema of rows: that of the columns named by the user, else the one inferred from all column names.

    Args:
        available: Column names of the rows.
        columns: Column names by role, if the user named any.

    Raises:
        ConversationError: If no schema matches.
    """
    return _named_schema(columns) if columns else detect_schema(available)


def detect_schema(columns: Iterable[str]) -> Schema:
    """Infer the schema from column names: the first of `SCHEMAS` whose columns are all present.

    Raises:
        ConversationError: If no schema matches.
    """
    present = set(columns)
    for schema in SCHEMAS:
        if present.issuperset(schema.columns):
            return schema
    wanted = ", ".join("+".join(schema.columns) for schema in SCHEMAS)
    raise ConversationError(
        f"no known conversation format in the columns {sorted(present)}: wanted one of {wanted}, "
        "or name the columns (columns={'user': …, 'assistant': …}; on the command line --columns user=…,assistant=…)"
    )


def clean(text: str) -> str:
    """Join surrogate pairs and replace lone surrogates, which fast tokenizers reject."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_columns(available: Iterable[str], columns: Mapping[str, str]) -> None:
    """Check that columns named by the user exist, and that their roles are known.

    Args:
        available: Column names of the dataset.
        columns: Column names by role.

    Raises:
        ConversationError: If a role is unknown, no column is named for the answer, or a column is missing.
    """
    present = set(available)
    if unknown := set(columns) - {"system", "user", "assistant", "messages", "text"}:
        raise ConversationError(
            f"unknown roles in columns: {sorted(unknown)}; use system, user, assistant, messages or text"
        )
    if not columns.keys() & {"assistant", "messages", "text"}:
        raise ConversationError("columns must name the assistant's text: assistant=…, messages=… or text=…")
    if missing := set(columns.values()) - present:
        raise ConversationError(
            f"columns {sorted(missing)} are not in the dataset, which has {sorted(present)}: name some of these"
        )


def _named_schema(columns: Mapping[str, str]) -> Schema:
    """Schema of the columns that the user named."""
    if "text" in columns:
        text = columns["text"]
        return Schema((text,), lambda row: [_message("assistant", row.get(text))], plain=True)
    if "messages" in columns:
        messages = columns["messages"]
        return Schema((messages,), lambda row: _chat(row.get(messages)))

    def read(row: Row) -> list[Message]:
        roles = [role for role in ("system", "user", "assistant") if role in columns]
        return [_message(r, row.get(columns[r])) for r in roles if r != "system" or row.get(columns[r])]

    return Schema(tuple(columns[role] for role in ("system", "user", "assistant") if role in columns), read)


def _chat(value: object) -> list[Message]:
    """Parse a list of role/content or from/value dicts, or the dict of lists that older `datasets` versions return."""
    if value is None:
        raise EmptyConversationError("wanted messages, got none: there is nothing to score")
    if isinstance(value, Mapping):
        value = _transpose(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise _wrong("a list of messages", value)
    return [_chat_message(item) for item in value]


def _chat_message(item: object) -> Message:
    if isinstance(item, str):  # a JSON column
        item = _parse(item)
    if not isinstance(item, Mapping):
        raise _wrong("a message with role and content", item)
    # Rows of mixed origin have both spellings, one of them null: take the one with a value.
    role, content = (item[a] if item.get(a) is not None else item.get(b) for a, b in MESSAGE_KEYS)
    message = _message(role, content, optional=bool(item.get("tool_calls")))
    return message | {key: item[key] for key in ("tool_calls", "tool_call_id", "name") if item.get(key)}


def _message(role: object, content: object, *, optional: bool = False) -> Message:
    """A message with normalised role and text; ``optional`` allows a message without content, as of tool calls."""
    known = ROLES.get(role.lower()) if isinstance(role, str) else None
    if known is None:
        raise ConversationError(f"unknown role {role!r:.80}: wanted one of {', '.join(ROLES)}")
    if content is None and optional:
        return {"role": known, "content": ""}
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part) for part in content)
    if content is None:
        raise EmptyConversationError(f"wanted text for the {known} turn, got none: fill or remove the row")
    if not isinstance(content, str):
        raise _wrong(f"text for the {known} turn", content)
    return {"role": known, "content": content}


def _part(part: object) -> str:
    """The text of one part of a content list; other modalities are not supported."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _wrong("a text part of a message", part)


def _transpose(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Convert a dict of lists to a list of dicts."""
    columns = list(value.values())
    if not columns or not all(isinstance(c, list) and len(c) == len(columns[0]) for c in columns):
        raise _wrong("a list of messages", value)
    return [dict(zip(value, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise _wrong("a message with role and content", text) from None


def _pair(user: str, assistant: str) -> Callable[[Row], list[Message]]:
    return lambda row: [_message("user", row[user]), _message("assistant", row[assistant])]


def _with_input(extra: str, answer: str) -> Callable[[Row], list[Message]]:
    """Alpaca and Dolly: the user turn is the instruction, followed by a blank line and the input if there is one."""

    def read(row: Row) -> list[Message]:
        parts = [row["instruction"], *([row[extra]] if row.get(extra) else [])]
        user = [_message("user", part)["content"] for part in parts]
        system = [_message("system", row["system"])] if row.get("system") else []
        return [*system, _message("user", "\n\n".join(user)), _message("assistant", row[answer])]

    return read


def _prompt_and(answer: str) -> Callable[[Row], list[Message]]:
    """TRL: prompt and answer are each a text or a list of messages."""

    def read(row: Row) -> list[Message]:
        prompt, reply = row["prompt"], row[answer]
        before = [_message("user", prompt)] if isinstance(prompt, str) or prompt is None else _chat(prompt)
        after = [_message("assistant", reply)] if isinstance(reply, str) or reply is None else _chat(reply)
        # Preference datasets often repeat the prompt in ``chosen``.
        return after if after[: len(before)] == before else before + after

    return read


# The first match counts. Rows may match several: preference datasets can have ``messages`` beside ``prompt`` and
# ``chosen``, and rows of any format can have a ``text`` column.
SCHEMAS = (
    Schema(("messages",), lambda row: _chat(row["messages"])),
    Schema(("conversations",), lambda row: _chat(row["conversations"])),
    Schema(("prompt", "completion"), _prompt_and("completion")),
    Schema(("prompt", "chosen"), _prompt_and("chosen")),
    Schema(("prompt", "response"), _prompt_and("response")),
    Schema(("instruction", "output"), _with_input("input", "output")),
    Schema(("instruction", "response"), _with_input("context", "response")),
    Schema(("question", "answer"), _pair("question", "answer")),
    Schema(("text",), lambda row: [_message("assistant", row["text"])], plain=True),
)


def _wrong(wanted: str, got: object) -> ConversationError:
    return ConversationError(f"wanted {wanted}, got {type(got).__name__} {got!r:.80}")
