"""Numbers in files of text: read as numbers only if nothing of what is written would be lost."""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, LargeList, List, Value

from larf_curate.errors import InputError

EXACT = 2**53
"""Largest number up to which a float64 holds every integer."""
INT64 = range(-(2**63), 2**63)
_LONG_INTEGER = re.compile(rb"(?<![\w.+-])-?\d{16,}(?![\w.+-])")
_INTEGER = r"^(0|-?[1-9][0-9]*)$"
_FLOAT = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]+)?$"
BOOLEANS = {"True", "False"}


def typed_columns(texts: Dataset) -> Features:
    """The types of the columns of a CSV file, by their texts.

    A column has numbers or booleans if each of its fields is written as Python writes that number or boolean. Others
    are texts: 00501, 1.50 and +1 would be changed.

    Args:
        texts: The rows, with columns of texts.
    """
    return Features({name: Value(_type(texts.data[name])) for name in texts.column_names})


def _type(column: pa.ChunkedArray) -> str:
    values = column.drop_null()
    if not len(values):
        return "string"
    if _all(values, _INTEGER):
        try:
            values.cast(pa.int64())
        except pa.ArrowInvalid:
            return "string"
        return "int64"
    if _all(values, _FLOAT) and all(repr(float(text)) == text for text in pc.unique(values).to_pylist()):
        return "float64"
    return (
        "bool"
        if set(values[:1].to_pylist()) <= BOOLEANS and set(pc.unique(values).to_pylist()) <= BOOLEANS
        else "string"
    )


def _all(values: pa.ChunkedArray, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(values, pattern)).as_py())


def check_integers(path: Path, features: Features) -> None:
    """Check that no integer of a JSON file was rounded to a float.

    Args:
        path: The file: lines of JSON, or one list.
        features: The types that its rows were read with.

    Raises:
        InputError: If an integer does not fit into 64 bits, or is in a column of floats that cannot hold it exactly.
    """
    for index, row in _rows_with_long_integers(path):
        if rounded := next(_rounded(row, features), None):
            name, value = rounded
            raise InputError(
                f"row {index} of {path.name} has the integer {value:.60} in {name!r}, which would be rounded: write it "
                "as text"
            )


def _rows_with_long_integers(path: Path) -> Iterator[tuple[int, Any]]:
    """Index and value of each row in which an integer may be too long."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if not _LONG_INTEGER.search(content):
            return
        lines = [] if content[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") else iter(content.readline, b"")
        try:
            found = [(i, json.loads(line)) for i, line in enumerate(lines) if _LONG_INTEGER.search(line)]
        except ValueError:  # one value over several lines
            found = []
        whole = None if found else json.loads(content[:].decode("utf-8-sig"))
    yield from found or enumerate(whole if isinstance(whole, list) else [whole])


def _rounded(value: Any, feature: Any, name: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401
    """Place and value of the integers in a value that its type does not hold exactly."""
    if isinstance(value, dict):
        for key, item in value.items():
            part = feature.get(key) if isinstance(feature, dict) else None
            yield from _rounded(item, part, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        part = feature.feature if isinstance(feature, List | LargeList) else None
        for item in value:
            yield from _rounded(item, part, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        is_float = isinstance(feature, Value) and feature.dtype.startswith("float")
        if value not in INT64 or (is_float and abs(value) > EXACT and float(value) != value):
            yield name, str(value)
