"""Datasets as users name them: a Hub id, a folder, files or globs, cut into pieces that are scored one by one."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, get_dataset_split_names, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from larf_curate.errors import InputError
from larf_curate.files import no_progress_bars, sha256

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
ROWS_PER_PIECE = 10_000


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of rows that becomes one output file.

    Args:
        name: File name of the output, without ending.
        rows: The rows.
    """

    name: str
    rows: Dataset


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset in pieces.

    Args:
        pieces: In row order.
        description: Where the rows come from, as JSON values: dataset, split, config, revision, files with digests.
    """

    pieces: tuple[Piece, ...]
    description: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of rows of all pieces."""
        return sum(len(piece.rows) for piece in self.pieces)


def open_source(
    name: str,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Source:
    """Open a dataset.

    Args:
        name: A Hub id, a folder from ``save_to_disk``, a folder of data files, a file, or a glob.
        split: Split, where there are several.
        config: Configuration of a Hub dataset.
        revision: Commit, tag or branch of a Hub dataset.
        limit: Only this many rows, from the beginning.

    Returns:
        The source; each file becomes one piece, or several of at most ``ROWS_PER_PIECE`` rows.

    Raises:
        InputError: If there is no such dataset, a file cannot be read, columns differ between files, or the split
            must be named.
    """
    files = _files(name)
    if files:
        parts = [(path.stem, _read(path)) for path in files]
        _check_columns(parts)
        listed = [{"name": path.name, "sha256": sha256(path)} for path in files]
        return _source(parts, limit, {"dataset": Path(name).name, "files": listed})
    if Path(name).is_dir():
        dataset, split = _one_split(load_from_disk(name), name, split)
        return _source([(split, dataset)], limit, {"dataset": Path(name).name, "split": split})
    return _from_hub(name, split, config, revision, limit)


def _files(name: str) -> list[Path]:
    """The data files a name stands for; none if it is a ``save_to_disk`` folder or a Hub id."""
    path = Path(name)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        found = (
            [] if saved else sorted(p for p in path.rglob("*") if p.suffix in FORMATS and not p.name.startswith("."))
        )
        if not saved and not found:
            raise InputError(f"no {', '.join(FORMATS)} files in {name}, and save_to_disk did not write it")
    else:
        found = sorted(Path(p) for p in glob.glob(name, recursive=True))
        if not found and (any(c in name for c in "*?[") or path.suffix in FORMATS or name.startswith((".", "/"))):
            raise InputError(f"no files match {name}")
    if wrong := [p.name for p in found if p.suffix not in FORMATS]:
        raise InputError(f"wanted files ending in {', '.join(FORMATS)}, got {', '.join(wrong[:3])}")
    return found


def _read(path: Path) -> Dataset:
    try:
        with no_progress_bars():
            return load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(f"cannot read {path.name} as {FORMATS[path.suffix]}: {cause}") from error


def _check_columns(parts: Sequence[tuple[str, Dataset]]) -> None:
    (first, wanted), *rest = parts
    for name, dataset in rest:
        if set(dataset.column_names) != set(wanted.column_names):
            raise InputError(
                f"{name} has columns {sorted(dataset.column_names)}, but {first} has {sorted(wanted.column_names)}: "
                "score files of one layout together"
            )


def _one_split(data: Dataset | DatasetDict, name: str, split: str | None) -> tuple[Dataset, str]:
    if isinstance(data, Dataset):
        return data, split or str(data.split or "train")
    if split is None and len(data) == 1:
        split = next(iter(data))
    if split not in data:
        raise InputError(f"{name} has the splits {', '.join(data)}: choose one (--split)")
    return data[split], str(split)


def _from_hub(name: str, split: str | None, config: str | None, revision: str | None, limit: int | None) -> Source:
    try:
        revision = HfApi().dataset_info(name, revision=revision).sha
        splits = get_dataset_split_names(name, config, revision=revision)
        if split is None and len(splits) == 1:
            split = splits[0]
        if split is None:
            raise InputError(f"{name} has the splits {', '.join(splits)}: choose one (--split)")
        dataset = load_dataset(name, config, split=split, revision=revision)
    except (HfHubHTTPError, LocalEntryNotFoundError, DatasetNotFoundError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"no file or folder and no readable Hub dataset {name!r}: {str(error).strip().splitlines()[0]}"
        ) from error
    return _source([(split, dataset)], limit, {"dataset": name, "config": config, "split": split, "revision": revision})


def _source(parts: Sequence[tuple[str, Dataset]], limit: int | None, description: dict[str, Any]) -> Source:
    pieces = tuple(piece for name, dataset in _limited(parts, limit) for piece in _cut(name, dataset))
    names = [piece.name for piece in pieces]
    if len(set(names)) != len(names):
        raise InputError("several files have one name: score them apart, or rename them")
    return Source(pieces=pieces, description={**description, "limit": limit})


def _limited(parts: Sequence[tuple[str, Dataset]], limit: int | None) -> Iterator[tuple[str, Dataset]]:
    left = limit if limit is not None else sum(len(dataset) for _, dataset in parts)
    for name, dataset in parts:
        yield name, dataset if len(dataset) <= left else dataset.select(range(left))
        left -= min(left, len(dataset))


def _cut(name: str, dataset: Dataset) -> Iterator[Piece]:
    count = max(1, -(-len(dataset) // ROWS_PER_PIECE))
    if count == 1:
        yield Piece(name=name, rows=dataset)
        return
    for index in range(count):
        rows = dataset.shard(count, index, contiguous=True)
        yield Piece(name=f"{name}-{index:05d}-of-{count:05d}", rows=rows)
