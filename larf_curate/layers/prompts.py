"""The prompts that layers are found with: harmless requests that sound harmful, so that a model sometimes refuses."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from larf_curate.data import load_rows
from larf_curate.errors import InputError
from larf_curate.files import no_progress_bars

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
COLUMNS = ("prompt", "question", "instruction", "goal", "behavior", "text")

Prompts = str | Path | Sequence[str] | None
"""None or ``builtin`` for the packaged set; a json list, jsonl, csv or parquet file; a Hub dataset id; or texts."""


def load_prompts(prompts: Prompts = None) -> list[str]:
    """Load over-rejection prompts.

    Args:
        prompts: What to load; of a table the column ``prompt``, ``question``, ``instruction``, ``goal``, ``behavior``
            or ``text``, of a Hub dataset the split ``train``.

    Returns:
        The prompts in order, without lone surrogates.

    Raises:
        InputError: If they cannot be read, there are none, or one is empty.
    """
    if prompts is None or prompts == "builtin":
        values: Sequence[Any] = [row["prompt"] for row in load_rows("overrejection")]
    elif isinstance(prompts, str | Path):
        values = _read(str(prompts))
    else:
        values = list(prompts)
    if not values:
        raise InputError("wanted prompts to find layers with, got none: leave prompts out for the built-in set")
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"wanted a text for prompt {index}, got {value!r:.60}: drop it")
    return [value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for value in values]


def _read(name: str) -> list[Any]:
    path = Path(name)
    try:
        if path.suffix == ".json" and path.exists():
            return [_prompt(item, name) for item in _list(path)]
        with no_progress_bars():
            rows = _table(path, name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:  # StopIteration: an empty file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot read prompts from {name!r} ({reason}): wanted a json, jsonl, csv or parquet file, or a Hub id"
        ) from error
    return [_prompt(row, name) for row in rows]


def _list(path: Path) -> list[Any]:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(value, list):
        raise ValueError(f"no list, but a {type(value).__name__}")
    return value


def _table(path: Path, name: str) -> Dataset:
    if path.exists() or path.suffix in FORMATS:
        return load_dataset(FORMATS[path.suffix], data_files=name, split="train")
    return load_dataset(name, split="train")


def _prompt(item: object, name: str) -> object:
    if not isinstance(item, Mapping):
        return item
    for column in COLUMNS:
        if column in item:
            return item[column]
    raise InputError(f"no prompts in {name!r}, which has the columns {', '.join(item)}: wanted one of {COLUMNS}")
