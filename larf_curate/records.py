"""Read JSON records that this package wrote: each has one schema, and anything that does not match it is refused.

A schema is a `TypedDict` or a frozen dataclass with ``__pydantic_config__ = STRICT``: numbers are finite, nothing is
converted, and unknown keys are refused. Those of a newer version never get that far: the version is checked first.
"""

import hashlib
import json
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import is_typeddict

from larf_curate.errors import InputError
from larf_curate.files import read_json, write_json

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""Configuration of the schemas of records."""
FOREIGN = STRICT | {"extra": "allow"}
"""Configuration of the schemas of records that others write or extend: only the fields that are used are checked."""
DIGEST = "digest"
"""Field of a sealed record: the digest of all its other fields."""
SHOWN_CHARACTERS = 60
"""Maximum number of characters of a wrong value that a message shows."""
Schema = TypeVar("Schema")


def read_record(path: str | Path, schema: type[Schema], *, remedy: str, secret: bool = False) -> Schema:
    """Read a JSON file and check it against its schema.

    Args:
        path: The file.
        schema: A `TypedDict` or a dataclass.
        remedy: What to do if the file is damaged, as the end of the message.
        secret: Whether values must not occur in messages.

    Raises:
        InputError: If the file is missing, is not JSON, or differs from the schema.
    """
    return parse_record(read_json(path), schema, path=path, remedy=remedy, secret=secret)


def read_sealed(path: str | Path, schema: type[Schema], *, remedy: str) -> Schema:
    """Read a record that `write_sealed` wrote, and check its digest too; see `read_record`.

    Raises:
        InputError: If the file is missing, is not JSON, differs from the schema, or was changed.
    """
    value = read_json(path)
    record = parse_record(value, schema, path=path, remedy=remedy)
    check_seal(value, path=path, remedy=remedy)
    return record


def parse_record(value: object, schema: type[Schema], *, path: str | Path, remedy: str, secret: bool = False) -> Schema:
    """Check a value, as `read_json` returns it, against a schema.

    Args:
        value: Any JSON value.
        schema: A `TypedDict` or a dataclass.
        path: Where it was read, for the message.
        remedy: What to do if it is damaged, as the end of the message.
        secret: Whether values must not occur in the message.

    Returns:
        The same value for a `TypedDict`, an instance of a dataclass.

    Raises:
        InputError: If it differs; the message names the file, the field, what was wanted and what came.
    """
    try:
        # As JSON, in which a list may become a tuple: for Python values the strict mode refuses that. Names of files
        # that are not UTF-8 are lone surrogates, which pydantic does not read.
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        parsed = _adapter(cast(Hashable, schema)).validate_json(text)
        return cast(Schema, value if is_typeddict(schema) else parsed)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    raise InputError(f"{path} {_fault(first, secret)}: {remedy}")


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of its other fields as its last field."""
    content = {key: value for key, value in record.items() if key != DIGEST}
    return {**content, DIGEST: record_digest(content)}


def record_digest(record: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a record without its own digest, in a form that does not depend on the order of keys."""
    content = {key: value for key, value in record.items() if key != DIGEST}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def check_seal(record: Mapping[str, Any], *, path: str | Path, remedy: str) -> None:
    """Check that a sealed record has not been changed since it was written.

    Raises:
        InputError: If its digest is another one.
    """
    if record.get(DIGEST) != record_digest(record):
        raise InputError(f"{path} was changed after it was written: {remedy}")


def write_sealed(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record atomically, with its digest.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    write_json(path, seal(record))


@cache
def _adapter(schema: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, schema))


def _fault(error: Mapping[str, Any], secret: bool) -> str:
    """What is wrong with a record, as the predicate of a message, from the first error that pydantic reports."""
    field = ".".join(map(str, error["loc"])) or "its content"
    if error["type"] == "missing":
        return f"has nothing as {field!r}"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"has the unknown field {field!r}"
    wanted = str(error["msg"]).removeprefix("Input should be ").splitlines()[0]
    came = type(error["input"]).__name__ if secret else _excerpt(error["input"])
    return f"has {came} as {field!r}, wanted {wanted}"


def _excerpt(value: object) -> str:
    """A value for a message: its type, and its beginning if it is short to tell."""
    if isinstance(value, dict | list):
        return f"a {type(value).__name__} of {len(value)}"
    shown = json.dumps(value)
    return shown if len(shown) <= SHOWN_CHARACTERS else shown[:SHOWN_CHARACTERS] + "…"
