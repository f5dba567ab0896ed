"""Parse dataset rows as conversations: schemas by column names.

Recognised columns: ``messages``, ``conversations`` (ShareGPT), ``conversation``, ``prompt``/``completion`` and
``prompt``/``chosen`` (TRL), ``chosen`` alone (the prompt is part of it), ``prompt``/``response``,
``instruction``/``input``/``output`` (Alpaca), ``instruction``/``context``/``response`` (Dolly), ``question``/``answer``
(GSM8K), ``question``/``response``, ``inputs``/``targets``, ``text``, or columns named by the user. Beside them the
columns in `EXTRAS` are read, as trainers read them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from larf_curate.conversation.messages import (
    LEARNED,
    ROLES,
    THOUGHT_KEYS,
    EmptyConversationError,
    Message,
    clean,
    clean_message,
    has_content,
    json_value,
    message_of,
    messages_of,
    parsed,
    text_of,
    wrong,
)
from larf_curate.errors import ConversationError

Row = Mapping[str, Any]
Reader = Callable[[Row], list[Message]]

SYSTEM = ("system", "system_prompt")
"""Columns with the system prompt of a row."""
HISTORY = "history"
"""Column with the earlier turns of a row of Alpaca's format, as LLaMA-Factory reads it: pairs of texts."""
ARGUMENTS = ("tools", "documents")
"""Columns that are arguments of the chat template."""
MORE_ARGUMENTS = "chat_template_kwargs"
"""Column with further arguments of the chat template, as in TRL."""
SWITCHES = ("on", "off", "true", "false", "yes", "no")
"""What columns named like thoughts also have, as in NVIDIA's Nemotron data: whether the model is to think."""
EXTRAS = (*SYSTEM, *ARGUMENTS, MORE_ARGUMENTS, *THOUGHT_KEYS)
"""Columns that are read beside those of any schema."""
SEEMINGLY_USED = (
    *EXTRAS,
    HISTORY,
    "functions",
    "input_ids",
    "input",
    "context",
    "images",
    "image",
    "audio",
    "videos",
    "instruction",
)
"""Columns that look like part of a conversation: a user is told if one is not read."""
TOKEN_COLUMNS = ("labels", "assistant_masks", "completion_mask")
"""Columns from which TRL takes what is learned, if they have an integer for each token."""

ROLE = "role:"
"""Prefix of keys of ``columns`` that name a further role of messages: ``role:narrator=user``."""
SEPARATOR = "input_separator"
"""Key of ``columns`` with the text between the instruction of an Alpaca or Dolly row and its input."""
DEFAULT_SEPARATOR = "\n"
"""As in the code of LARF's authors and in LLaMA-Factory."""
NAMED = ("system", "user", "assistant", "messages", "text")
"""Keys of ``columns`` that name a column."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The conversation that a row trains a model on.

    Args:
        messages: The chat messages with normalised roles and contents; at least one assistant message has text or tool
            calls.
        text: Text of a row that is already rendered (a ``text`` column), to be used without a chat template; else None.
        arguments: Further arguments of the chat template: ``tools``, ``documents``, and those that a row names.
        ignored: Columns that look like part of the conversation and are not read in this row, with the reason.
        roles: Names of roles in the row.
    """

    messages: list[Message]
    text: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    roles: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Schema:
    """A row format: the columns that store a conversation, and how they are read.

    Args:
        columns: The required columns, with the column of the answer last.
        read: Function that reads the messages of a row.
        plain: Whether rows are already rendered as text, so that no chat template is applied.
        reads: Further columns that ``read`` reads.
    """

    columns: tuple[str, ...]
    read: Reader
    plain: bool = False
    reads: tuple[str, ...] = ()

    @property
    def used(self) -> frozenset[str]:
        """All columns that rows of this format are read from, if they have them."""
        return frozenset({*self.columns, *self.reads, *(() if self.plain else EXTRAS)})


def to_conversation(
    row: Row | None, columns: Mapping[str, str] | None = None, *, schema: Schema | None = None
) -> Conversation:
    """Parse a row as a conversation.

    Args:
        row: A dataset row.
        columns: Column names by role (``{"user": "q", "assistant": "a"}``; also ``system``, ``messages`` and ``text``,
            and ``role:NAME`` for a further role of messages, and ``input_separator`` for the text between an Alpaca
            instruction and its input); default: inferred from the row's column names.
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
        raise wrong("a row with named columns", row)
    schema = schema or schema_for(row, columns)
    messages = [clean_message(message) for message in schema.read(row)]
    if not any(has_content(message) for message in messages if message["role"] == "assistant"):
        wanted = "text" if schema.plain else "an assistant turn with text"
        raise EmptyConversationError(f"wanted {wanted}, got none: {_elsewhere(row, schema)}")
    if schema.plain:
        return Conversation(messages=messages, text=messages[0]["content"])
    roles = _role_names(row, schema)
    if row.keys().isdisjoint(EXTRAS):
        return Conversation(messages=messages, roles=roles)
    messages = _with_extras(messages, row, schema)
    ignored = _ignored_prompts(messages[0], row, schema) | _ignored_switches(row, schema)
    return Conversation(messages=messages, arguments=_arguments(row), ignored=ignored, roles=roles)


def to_messages(row: Row, columns: Mapping[str, str] | None = None) -> list[Message]:
    """Parse a row as chat messages, all contents as text; see `to_conversation` for arguments and errors."""
    return [message | {"content": text_of(message)} for message in to_conversation(row, columns).messages]


def schema_for(available: Iterable[str], columns: Mapping[str, str] | None) -> Schema:
    """Return the schema of rows: that of the columns named by the user, else the one inferred from all column names.

    Args:
        available: Column names of the rows.
        columns: Column names by role, if the user named any.

    Raises:
        ConversationError: If no schema matches.
    """
    columns = columns or {}
    roles = further_roles(columns)
    if named := _named_columns(columns):
        return _named_schema(named, roles)
    return detect_schema(available, roles, separator=columns.get(SEPARATOR, DEFAULT_SEPARATOR))


def with_separator(columns: Mapping[str, str] | None, separator: str | None) -> dict[str, str] | None:
    """Column names by role together with the input separator of a profile.

    Args:
        columns: Column names by role, which may contain a separator.
        separator: The profile's separator; None for the default.

    Returns:
        The columns, with the separator if it is not the default; None if that leaves nothing.

    Raises:
        ConversationError: If the columns contain another separator.
    """
    named = dict(columns or {})
    wanted = DEFAULT_SEPARATOR if separator is None else separator
    if (given := named.pop(SEPARATOR, wanted)) != wanted:
        raise ConversationError(
            f"wanted the input separator of the profile, {wanted!r}, got {given!r}: build a profile with "
            "--input-separator, or omit it here"
        )
    return named | ({} if wanted == DEFAULT_SEPARATOR else {SEPARATOR: wanted}) or None


def _named_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """The keys that name a column, without further roles and the separator."""
    return {key: column for key, column in columns.items() if key != SEPARATOR and not key.startswith(ROLE)}


def further_roles(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Normalised roles by the further names that the user gave among the columns."""
    return {key.removeprefix(ROLE).lower(): role for key, role in (columns or {}).items() if key.startswith(ROLE)}


def detect_schema(
    columns: Iterable[str], roles: Mapping[str, str] | None = None, *, separator: str = DEFAULT_SEPARATOR
) -> Schema:
    """Infer the schema from column names: the first whose columns are all present.

    Args:
        columns: Column names of the rows.
        roles: Normalised roles by further names.
        separator: Text between the instruction of an Alpaca or Dolly row and its input.

    Raises:
        ConversationError: If no schema matches.
    """
    present = set(columns)
    schemas = _schemas(tuple(sorted((roles or {}).items())), separator)
    for schema in schemas:
        if present.issuperset(schema.columns):
            return schema
    wanted = ", ".join("+".join(schema.columns) for schema in schemas)
    raise ConversationError(
        f"no known conversation format in the columns {sorted(present)}: wanted one of {wanted}, "
        "or name the columns (columns={'user': …, 'assistant': …}; on the command line --columns user=…,assistant=…)"
    )


def unused_columns(available: Iterable[str], columns: Mapping[str, str] | None = None) -> list[str]:
    """Columns that look like part of the conversation but are not read.

    Args:
        available: Column names of the rows.
        columns: Column names by role, if the user named any.

    Raises:
        ConversationError: If no schema matches.
    """
    present = set(available)
    schema = schema_for(present, columns)
    schemas = _schemas((), DEFAULT_SEPARATOR)
    others = {column for other in schemas for column in other.columns} - {"chosen"} | set(SEEMINGLY_USED)
    return sorted(present & others - schema.used)


def columns_of_side(available: Iterable[str], side: str) -> dict[str, str]:
    """Column names by role to read one side of preference data.

    Args:
        available: Column names of the dataset.
        side: The column of the side: ``chosen`` or ``rejected``.

    Raises:
        ConversationError: If the dataset has no such column.
    """
    present = set(available)
    columns = {"user": "prompt", "assistant": side} if "prompt" in present else {"messages": side}
    check_columns(present, columns)
    return columns


def check_columns(available: Iterable[str], columns: Mapping[str, str]) -> None:
    """Check that columns named by the user exist, and that their roles are known.

    Args:
        available: Column names of the dataset.
        columns: Column names by role.

    Raises:
        ConversationError: If a role is unknown, no column is named for the answer, or a column is missing.
    """
    present = set(available)
    named = _named_columns(columns)
    if unknown := set(named) - set(NAMED):
        raise ConversationError(
            f"unknown roles in columns: {sorted(unknown)}; use system, user, assistant, messages or text"
        )
    if wrong_roles := sorted(set(further_roles(columns).values()) - set(ROLES.values())):
        raise ConversationError(f"unknown roles {wrong_roles}: use {', '.join(dict.fromkeys(ROLES.values()))}")
    if named and not named.keys() & {"assistant", "messages", "text"}:
        raise ConversationError("columns must name the assistant's text: assistant=…, messages=… or text=…")
    if missing := set(named.values()) - present:
        raise ConversationError(
            f"columns {sorted(missing)} are not in the dataset, which has {sorted(present)}: name some of these"
        )


def _with_extras(messages: list[Message], row: Row, schema: Schema) -> list[Message]:
    """Messages with the system prompt and the thought that are in columns of their own."""
    columns = [column for column in EXTRAS if column not in schema.columns and row.get(column)]
    if not columns:
        return messages
    thoughts = {key: row[key] for key in THOUGHT_KEYS if key in columns and _is_thought(row[key])}
    if thoughts and messages[-1]["role"] == "assistant":
        messages = [*messages[:-1], {**thoughts, **messages[-1]}]
    system = next((row[column] for column in SYSTEM if column in columns), None)
    if system and messages[0]["role"] != "system":
        messages = [message_of("system", system), *messages]
    return [clean_message(message) for message in messages]


def _role_names(row: Row, schema: Schema) -> frozenset[str]:
    """Names of roles in the lists of messages of a row that has been read."""
    lists = [value for column in schema.columns if isinstance(value := row.get(column), list)]
    names = {
        message.get("role") or message.get("from")
        for messages in lists
        for message in messages
        if isinstance(message, dict)
    }
    return frozenset(name for name in names if isinstance(name, str))


def _elsewhere(row: Row, schema: Schema) -> str:
    """Where else a row without answer may have one."""
    prompt, chosen = schema.columns[-1], row.get("chosen")
    has_chosen = isinstance(chosen, str | list | Mapping) and bool(chosen) and schema.columns == (prompt,)
    if not has_chosen or schema.plain or prompt == "chosen":
        return "there is nothing to score"
    return f"chosen is not read beside {prompt}; name both (--columns user={prompt},assistant=chosen)"


def _ignored_prompts(first: Message, row: Row, schema: Schema) -> dict[str, str]:
    """Columns with another system prompt than the conversation begins with."""
    prompts = {column: row[column] for column in SYSTEM if row.get(column) and column not in schema.columns}
    reason = "where a row has another system prompt, which comes first"
    return {column: reason for column, value in prompts.items() if clean(value) != text_of(first)}


def _is_thought(value: object) -> bool:
    """Whether a column has a thought, and not a switch or settings, as `SWITCHES` describes."""
    return isinstance(value, str) and value.strip().lower() not in SWITCHES


def _ignored_switches(row: Row, schema: Schema) -> dict[str, str]:
    """Columns named like thoughts that have none."""
    given = [column for column in THOUGHT_KEYS if row.get(column) and column not in schema.columns]
    return dict.fromkeys(
        (column for column in given if not _is_thought(row[column])), "where it has no text of a thought"
    )


def _history(value: object) -> list[Message]:
    """Earlier turns: a list of pairs, or messages."""
    turns = parsed(value, "a list of pairs of texts") if isinstance(value, str) else value
    if not isinstance(turns, list | tuple):
        raise wrong("a list of pairs of texts", turns)
    if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns):
        return messages_of(turns)
    return [message_of(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)]


def _arguments(row: Row) -> dict[str, Any]:
    """The arguments that a row has for the chat template; as in TRL, ``chat_template_kwargs`` come first."""
    found: dict[str, Any] = {}
    if more := _value(row, MORE_ARGUMENTS):
        if not isinstance(more, Mapping):
            raise wrong(f"a dict of arguments in column {MORE_ARGUMENTS}", more)
        found = dict(more)
    for column in ARGUMENTS:
        if column not in found and (value := _value(row, column)) is not None:
            if not isinstance(value, list):
                raise wrong(f"a list in column {column}", value)
            found[column] = [_item(item, column) if isinstance(item, str) else item for item in value]
    return found


def _value(row: Row, column: str) -> Any:  # noqa: ANN401  any JSON value
    """The value of a column, parsed if it is JSON; None if there is none."""
    value = row.get(column)
    if value is None:
        return None
    if isinstance(value, str):
        value = parsed(value, f"JSON in column {column}") if value.strip() else None
    return clean(json_value(value))


def _item(text: str, column: str) -> Any:  # noqa: ANN401  any JSON value
    return parsed(text, f"JSON in column {column}") if column == "tools" else {"text": text}


def _named_schema(columns: Mapping[str, str], roles: Mapping[str, str]) -> Schema:
    """Schema of the columns that the user named."""
    if "text" in columns:
        text = columns["text"]
        return Schema((text,), lambda row: [_turn("assistant", row.get(text))], plain=True)
    if "messages" in columns:
        messages = columns["messages"]
        return Schema((messages,), lambda row: _dialog(row.get(messages), roles))
    user, assistant, system = columns.get("user"), columns.get("assistant", ""), columns.get("system")

    def read(row: Row) -> list[Message]:
        before = _side("user", row.get(user), roles) if user else []
        after = _side("assistant", row.get(assistant), roles)
        first = [_turn("system", row[system])] if system and row.get(system) else []
        return [*first, *_joined(before, after)]

    return Schema(tuple(column for column in (system, user, assistant) if column), read)


def _turn(role: str, value: object) -> Message:
    """A message of a column with text; a list is no text, or the parts of one."""
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value) and len(value) != 1:
        raise wrong(f"text for the {role} turn", value)
    return message_of(role, value)


def _side(role: str, value: object, roles: Mapping[str, str]) -> list[Message]:
    """The messages of a column that has a text or a list of messages."""
    if isinstance(value, Mapping) and any(isinstance(value.get(key), str) for key in ("role", "from")):
        value = [value]  # one message, as the preference data of LLaMA-Factory have
    is_chat = isinstance(value, Mapping) or isinstance(value, list | tuple) and not _are_parts(value)
    return messages_of(value, roles) if is_chat else [_turn(role, value)]


def _are_parts(value: Iterable[object]) -> bool:
    return all(isinstance(item, str) or isinstance(item, Mapping) and "type" in item for item in value)


def _joined(before: list[Message], after: list[Message]) -> list[Message]:
    """A prompt, of which trainers learn no turn, and what follows; preference data often repeat it in ``chosen``."""
    kept, end = _repetition(before, after)
    prompt = [
        message | {LEARNED: None} if message["role"] == "assistant" else message
        for message in before[:kept] + after[:end]
    ]
    return prompt + after[end:]


def _repetition(before: list[Message], after: list[Message]) -> tuple[int, int]:
    """Where a prompt is repeated in what follows it.

    Messages of preference data begin with the prompt, or hold it behind a system prompt and earlier turns of which
    the prompt has none, or begin with its last turns.

    Returns:
        Number of messages of the prompt that are not repeated, and of those that follow up to the end of the prompt.
    """
    given, found = ([_identity(message) for message in messages] for messages in (before, after))
    count, is_whole = len(given), bool(after) and after[0]["role"] != "assistant"
    for start in range(len(found) - count + 1 if is_whole else 1):
        if found[start : start + count] == given:
            return 0, start + count
    shared = (size for size in range(min(count, len(found)) - 1, 0, -1) if given[-size:] == found[:size])
    size = next(shared, 0) if is_whole else 0
    return count - size, size


def _identity(message: Message) -> tuple[object, ...]:
    """What two copies of a message have in common, whatever other keys and space at the edges they have."""
    return message["role"], text_of(message).strip(), message.get("tool_calls")


def _pair(user: str, assistant: str) -> Reader:
    return lambda row: [_turn("user", row[user]), _turn("assistant", row[assistant])]


def _with_input(extra: str, answer: str, separator: str) -> Reader:
    """Alpaca and Dolly: the user turn is the instruction, followed by the separator and the input if there is one.

    Earlier turns are read as in LLaMA-Factory.
    """

    def read(row: Row) -> list[Message]:
        parts = [row["instruction"], *([row[extra]] if row.get(extra) else [])]
        user = [text_of(_turn("user", part)) for part in parts]
        earlier = _history(row[HISTORY]) if row.get(HISTORY) else []
        return [*earlier, message_of("user", separator.join(user)), _turn("assistant", row[answer])]

    return read


def _prompt_and(answer: str, roles: Mapping[str, str]) -> Reader:
    """TRL: prompt and answer are each a text or a list of messages."""
    return lambda row: _joined(_side("user", row["prompt"], roles), _side("assistant", row[answer], roles))


def _dialog(value: object, roles: Mapping[str, str]) -> list[Message]:
    """Messages, or a dialog as one text, as in the preference data of Anthropic's hh-rlhf."""
    if isinstance(value, str) and (turns := re.split(r"\n\n(Human|Assistant): ?", f"\n\n{value.lstrip()}")[1:]):
        names = {"Human": "user", "Assistant": "assistant"}
        return [message_of(names[name], text) for name, text in zip(turns[::2], turns[1::2], strict=True)]
    if isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        error = wrong("a list of messages", value)
        raise ConversationError(
            f"{error}; if it is an answer, name its prompt's column too (--columns user=…,assistant=…)"
        )
    return messages_of(value, roles)


@lru_cache(maxsize=16)
def _schemas(named_roles: tuple[tuple[str, str], ...], separator: str) -> tuple[Schema, ...]:
    """The schemas, for messages with further names of roles and a separator of inputs; the first match counts.

    Rows may match several: preference datasets can have ``messages`` beside ``prompt`` and ``chosen``, and rows of any
    format can have a ``text`` column.
    """
    roles = dict(named_roles)
    return (
        *(Schema((name,), _list_reader(name, roles)) for name in ("messages", "conversations", "conversation")),
        *(Schema(("prompt", answer), _prompt_and(answer, roles)) for answer in ("completion", "chosen", "response")),
        Schema(("chosen",), _list_reader("chosen", roles)),
        Schema(("instruction", "output"), _with_input("input", "output", separator), reads=("input", HISTORY)),
        Schema(("instruction", "response"), _with_input("context", "response", separator), reads=("context", HISTORY)),
        Schema(("question", "answer"), _pair("question", "answer")),
        Schema(("question", "response"), _pair("question", "response")),
        Schema(("inputs", "targets"), _pair("inputs", "targets")),
        Schema(("text",), lambda row: [_turn("assistant", row["text"])], plain=True),
    )


def _list_reader(column: str, roles: Mapping[str, str]) -> Reader:
    return lambda row: _dialog(row[column], roles)
