"""Texts of JSON files that look like dates: the reader takes them for times, and the way they were written is lost."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, LargeList, List, Value, concatenate_datasets


def dates_as_texts(rows: Dataset, path: Path, folder: Path) -> Dataset:
    """Replace columns with times by the texts of the file: JSON has no times.

    Args:
        rows: The rows as the reader of `datasets` gives them.
        path: Their file: lines of JSON, or one list.
        folder: Folder for the texts.

    Raises:
        ValueError: If the file has other rows.
    """
    features = rows.features  # copied at each access
    types = {name: _as_text(type_) for name, type_ in features.items()}
    dated = Features({name: type_ for name, type_ in types.items() if type_ != features[name]})
    if not dated:
        return rows
    # A tuple of names, since `datasets` reads a list as parts of the data.
    given = {"path": path, "names": tuple(dated)}
    texts = Dataset.from_generator(_columns, features=dated, cache_dir=str(folder), gen_kwargs=given)
    if len(texts) != len(rows):
        raise ValueError(f"wanted one row per line in a file with dates, got {len(texts)} for {len(rows)} rows")
    return concatenate_datasets([rows.remove_columns(list(dated)), texts], axis=1).select_columns(list(types))


def _as_text(feature: Any) -> Any:  # noqa: ANN401  a feature, or a dict of features
    if isinstance(feature, dict):
        return {name: _as_text(part) for name, part in feature.items()}
    if isinstance(feature, List | LargeList):
        return replace(feature, feature=_as_text(feature.feature))
    return Value("string") if isinstance(feature, Value) and feature.dtype.startswith("timestamp") else feature


def _columns(path: Path, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Some columns of each row of a JSON file."""
    for row in _rows(path):
        yield {name: row.get(name) for name in names}


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig") as file:
        if file.read(1) == "[":
            file.seek(0)
            yield from json.load(file)
            return
        file.seek(0)
        yield from (json.loads(line) for line in file if line.strip())
