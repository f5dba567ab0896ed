"""Data that ships with the package: references, neutral rows, the demo and over-rejection prompts."""

import json
from importlib.resources import files


def load_rows(name: str) -> list[dict[str, str | bool]]:
    """Read one packaged file, a dict a row.

    Args:
        name: File name without ending: references, neutral, demo or overrejection.

    Returns:
        The rows in the order of the file; only `is_harmful` of the demo is not a string.
    """
    text = files(__package__).joinpath(f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
