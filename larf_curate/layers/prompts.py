"""The prompts that layers are found with: harmless requests that sound harmful, so that a model sometimes refuses."""

from collections.abc import Sequence
from pathlib import Path

from larf_curate.data.prompts import load_prompts
from larf_curate.errors import InputError

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
