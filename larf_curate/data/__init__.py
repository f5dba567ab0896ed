"""Reading data: datasets, references, prompts and tables, and the files packaged with larf_curate."""

import json
from importlib.resources import files


def load_rows(name: str) -> list[dict[str, str | bool]]:
    """Read a packaged JSON lines file.

    Args:
        name: File name without suffix: ``references``, ``neutral``, ``demo`` or ``overrejection``.

    Returns:
        One dict per row, in file order; all values are strings, except ``is_harmful`` of the demo.
    """
    text = files(__package__).joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    # Not splitlines(), which would also split at other line separators inside a string.
    return [json.loads(line) for line in text.split("\n") if line]
