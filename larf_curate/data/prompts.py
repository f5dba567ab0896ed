"""Prompts and tables from files, the Hub or the package."""

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from larf_curate.data import load_rows
from larf_curate.data.sources import local_source, open_source
from larf_curate.errors import InputError
from larf_curate.files import parse_json
from larf_curate.remote import public_name

BUILTIN = {"builtin:harmful": "references", "builtin:safe": "overrejection"}
"""Packaged file by the name that stands for its prompts."""
PROMPT_COLUMNS = ("prompt", "goal", "behavior", "instruction", "question", "query", "text")
"""Column names that are recognised as prompts, in any case, in order of preference."""


def load_prompts(
    source: str | Path,
    *,
    column: str | None = None,
    split: str | None = None,
    where: str | None = None,
    limit: int | None = None,
) -> list[str]:
    """Load prompts from a csv, json, jsonl or parquet file, or from a Hub dataset.

    A json file may also be a plain list of strings.

    Args:
        source: File or Hub id; ``builtin:harmful`` for the prompts of the packaged references, ``builtin:safe`` for
            the packaged over-rejection prompts.
        column: Column of the prompts; default: the first of `PROMPT_COLUMNS` in the data.
        split: Split to load; required if there are several.
        where: Load only rows with ``column=value``, for example ``label=safe`` for XSTest's safe prompts.
        limit: Load at most this many prompts, from the beginning; default: all.

    Returns:
        The prompts in order.

    Raises:
        InputError: If the file or column does not exist, there are no prompts, or a prompt is empty or not text.
    """
    if where is not None and not all(where.partition("=")[:2]):
        raise InputError(f"wanted where as column=value, such as label=safe, got {where!r}")
    if str(source) in BUILTIN:
        _reject_column_options(source, column, where)
        return [str(row["prompt"]) for row in load_rows(BUILTIN[str(source)])][:limit]
    found, source = local_source(str(source)), public_name(source)
    strings = _plain_list(Path(found))
    if strings is not None:
        _reject_column_options(source, column, where)
    prompts = strings if strings is not None else _column(load_table(found, split=split), column, where, source)
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"prompt {index} of {source} is empty or not text: remove the row")
    if not prompts:
        raise InputError(f"{source} has no prompts" + (f" with {where}" if where else "") + ": check the file")
    return prompts[:limit]


def load_table(source: str | Path, *, split: str | None = None) -> Dataset:
    """Load the rows of a file, a glob, a folder or a Hub dataset.

    Of a folder that ``select`` or ``review pull`` wrote, only the kept rows are loaded.

    Args:
        source: What to load; see `larf_curate.data.sources.open_source`.
        split: Split to load; required if there are several.

    Raises:
        InputError: If it cannot be read.
    """
    found = local_source(str(source))
    kept = Path(found) / "kept"
    pieces = open_source(str(kept if kept.is_dir() else found), split=split).pieces
    return concatenate_datasets([piece.rows for piece in pieces])


def _reject_column_options(source: str | Path, column: str | None, where: str | None) -> None:
    if given := column or where:
        raise InputError(f"{source} is a plain list of prompts without columns, got {given!r}: omit this option")


def _plain_list(path: Path) -> list[str] | None:
    """Read a JSON file that contains a list of strings; None for any other file.

    Raises:
        InputError: If it is nested too deeply or contains a single value, which `datasets` does not survive.
    """
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        value = parse_json(path.read_text(encoding="utf-8-sig"), path)
    except ValueError as error:  # JSON lines in a file named .json, which `datasets` reads
        if isinstance(error.__cause__, RecursionError):
            raise
        return None
    if not isinstance(value, list | dict):
        raise InputError(f"cannot read {path}: wanted a JSON list of prompts, or rows, got {value!r:.60}")
    return value if isinstance(value, list) and value and isinstance(value[0], str) else None


def _column(table: Dataset, column: str | None, where: str | None, source: str | Path) -> list[str]:
    """Values of the prompt column, in the rows that match ``where``."""
    names = {name.lower(): name for name in table.column_names}
    found = column if column else next((names[name] for name in PROMPT_COLUMNS if name in names), None)
    if found not in table.column_names:
        raise InputError(
            f"{source} has no column {column or 'of prompts'}, only {', '.join(table.column_names)}: name one of these"
        )
    if where is None:
        return list(table[found])
    key, _, value = where.partition("=")
    if key not in table.column_names:
        raise InputError(f"{source} has no column {key!r}, only {', '.join(table.column_names)}: wanted column=value")
    return [prompt for prompt, cell in zip(table[found], table[key], strict=True) if str(cell) == value]


Prompts = str | Path | Sequence[str] | None
"""None or ``builtin`` for the packaged set; a json, jsonl, csv or parquet file; a Hub dataset id; or the texts."""


def overrejection_prompts(prompts: Prompts = None) -> list[str]:
    """Load over-rejection prompts.

    Args:
        prompts: A source or a list of prompts; see `load_prompts` for files and Hub ids. Default: the packaged set.

    Returns:
        The prompts in order; lone surrogates are replaced.

    Raises:
        InputError: If the prompts cannot be read, there are none, or one is empty or not text.
    """
    if prompts is None or isinstance(prompts, str | Path):
        values = load_prompts("builtin:safe" if prompts in (None, "builtin") else str(prompts))
    else:
        values = list(prompts)
    if not values:
        raise InputError("wanted over-rejection prompts, got none: omit prompts to use the built-in set")
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"wanted text for prompt {index}, got {value!r:.60}: remove it")
    return [value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for value in values]
