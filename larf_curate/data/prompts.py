"""Prompt sets and question sets from files or the Hub."""

import json
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from larf_curate.data import load_rows
from larf_curate.data.sources import open_source
from larf_curate.errors import InputError

BUILTIN = {"builtin:harmful": "references", "builtin:safe": "overrejection"}
PROMPT_COLUMNS = ("prompt", "goal", "behavior", "instruction", "question", "query", "text")


def load_prompts(
    source: str | Path,
    *,
    column: str | None = None,
    split: str | None = None,
    where: str | None = None,
    limit: int | None = None,
) -> list[str]:
    """Read prompts from a csv, json, jsonl or parquet file, or from a Hub dataset.

    A json file may also be a plain list of strings.

    Args:
        source: File or Hub id; ``builtin:harmful`` for the prompts of the packaged references, ``builtin:safe`` for
            the packaged over-rejection prompts.
        column: Column of the prompts, if it is none of the usual ones.
        split: Split, where there are several.
        where: Keep only rows with ``column=value``, for example ``label=safe`` for XSTest's safe prompts.
        limit: Most prompts, from the beginning.

    Returns:
        The prompts in order.

    Raises:
        InputError: If there is no such file, column or prompt, or a prompt is not text.
    """
    if where is not None and not all(where.partition("=")[:2]):
        raise InputError(f"wanted column=value, got {where!r}, as in label=safe")
    if str(source) in BUILTIN:
        _no_columns(source, column, where)
        return [str(row["prompt"]) for row in load_rows(BUILTIN[str(source)])][:limit]
    strings = _plain_list(Path(source))
    if strings is not None:
        _no_columns(source, column, where)
    prompts = strings if strings is not None else _column(load_table(source, split=split), column, where, source)
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"prompt {index} of {source} is empty or not text: drop the row")
    if not prompts:
        raise InputError(f"{source} has no prompts" + (f" with {where}" if where else "") + ": look at the file")
    return prompts[:limit]


def load_table(source: str | Path, *, split: str | None = None) -> Dataset:
    """Read rows: a file, a glob, a folder, or a split of a Hub dataset.

    Of a selection or of decisions, the folder that ``select`` or ``review pull`` wrote, the kept rows are read.

    Raises:
        InputError: If it cannot be read.
    """
    kept = Path(source) / "kept"
    pieces = open_source(str(kept if kept.is_dir() else source), split=split).pieces
    return concatenate_datasets([piece.rows for piece in pieces])


def _no_columns(source: str | Path, column: str | None, where: str | None) -> None:
    if asked := column or where:
        raise InputError(f"{source} is a plain list of prompts without the column of {asked!r}: leave it out")


def _plain_list(path: Path) -> list[str] | None:
    if path.suffix != ".json" or not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:  # JSON lines under another name
        return None
    return value if isinstance(value, list) and value and isinstance(value[0], str) else None


def _column(table: Dataset, column: str | None, where: str | None, source: str | Path) -> list[str]:
    names = {name.lower(): name for name in table.column_names}
    found = column if column else next((names[name] for name in PROMPT_COLUMNS if name in names), None)
    if found not in table.column_names:
        raise InputError(
            f"{source} has no column {column or 'of prompts'}, only {', '.join(table.column_names)}: name one of them"
        )
    if where is None:
        return list(table[found])
    key, _, value = where.partition("=")
    if key not in table.column_names:
        raise InputError(f"{source} has no column {key!r}, only {', '.join(table.column_names)}: wanted column=value")
    return [prompt for prompt, cell in zip(table[found], table[key], strict=True) if str(cell) == value]


Prompts = str | Path | Sequence[str] | None
"""None or ``builtin`` for the packaged set; a json, jsonl, csv or parquet file; a Hub dataset id; or texts."""


def overrejection_prompts(prompts: Prompts = None) -> list[str]:
    """Load over-rejection prompts.

    Args:
        prompts: What to load; see `larf_curate.data.prompts.load_prompts` for files and Hub ids.

    Returns:
        The prompts in order, without lone surrogates.

    Raises:
        InputError: If they cannot be read, there are none, or one is empty.
    """
    if prompts is None or isinstance(prompts, str | Path):
        values = load_prompts("builtin:safe" if prompts in (None, "builtin") else str(prompts))
    else:
        values = list(prompts)
    if not values:
        raise InputError("wanted prompts to find layers with, got none: leave prompts out for the built-in set")
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"wanted a text for prompt {index}, got {value!r:.60}: drop it")
    return [value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for value in values]
