"""Files that are either whole or not there: JSON and Parquet, written aside and then renamed."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo, Features, LargeList, List

from larf_curate.errors import InputError

ROWS_PER_SHARD = 100_000
SAMPLE = 4096
SAMPLES = 256
"""Bytes of a piece, and pieces of a file, that `sampled_digest` reads."""


def cache_home() -> Path:
    """Folder for what can be made again: ``$LARF_CURATE_HOME``, by default ``~/.cache/larf-curate``."""
    return Path(os.environ.get("LARF_CURATE_HOME") or Path.home() / ".cache" / "larf-curate")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes that name in one step, on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")  # several processes may write the same file
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401  any JSON value
    """Write a JSON file in one step, keys in the order given."""
    with whole(Path(path)) as aside:
        aside.write_text(json.dumps(value, ensure_ascii=True, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:  # noqa: ANN401  any JSON value
    """Read a JSON file.

    Raises:
        InputError: If it is not there or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is not there: was the folder written by larf-curate, and whole?") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): write it again with the command that made it") from error


MANIFESTS = {"manifest.json": "scored rows", "selection.json": "a selection", "decisions.json": "decisions"}
PLAN = "plan.json"
"""What a folder that is being scored will hold."""


def check_folder(folder: str | Path, manifest: str) -> None:
    """Refuse to write into a folder that holds results of another kind, which have parts of the same names.

    Args:
        folder: Where results shall go; it need not be there.
        manifest: The file that describes them.

    Raises:
        InputError: If the folder has the manifest of another kind.
    """
    for name, kind in MANIFESTS.items():
        if name != manifest and (Path(folder) / name).exists():
            raise InputError(f"{folder} holds {kind}, which would be overwritten: write to another folder")


def write_parquet(dataset: Dataset, folder: str | Path) -> list[Path]:
    """Write a dataset as Parquet shards of at most ``ROWS_PER_SHARD`` rows, in place of those of an earlier one.

    An empty dataset gives one empty shard.

    Returns:
        The shards, in row order.
    """
    for earlier in Path(folder).glob("part-*.parquet"):
        earlier.unlink()
    count = max(1, -(-len(dataset) // ROWS_PER_SHARD))
    paths = [Path(folder) / f"part-{i:05d}-of-{count:05d}.parquet" for i in range(count)]
    for index, path in enumerate(paths):
        with whole(path) as aside, no_progress_bars():
            _gathered(dataset.shard(count, index, contiguous=True)).to_parquet(aside)
    return paths


def _gathered(dataset: Dataset) -> Dataset:
    """The same rows in one piece: a selection has a piece a row, which takes ten times as long to write."""
    table = dataset.with_format("arrow")[:].combine_chunks()
    return Dataset(table, info=DatasetInfo(features=dataset.features))


def read_parquet(folder: str | Path) -> Dataset:
    """Read all Parquet shards of a folder, in name order.

    Raises:
        InputError: If there are none.
    """
    paths = sorted(str(path) for path in Path(folder).glob("*.parquet"))
    if not paths:
        raise InputError(f"no Parquet files in {folder}: give the folder that a larf-curate command wrote")
    if not any(pq.read_metadata(path).num_rows for path in paths):  # which `datasets` refuses to read
        return Dataset(pq.read_table(paths[0]))
    with no_progress_bars():
        return Dataset.from_parquet([glob.escape(path) for path in paths])


def undecoded(rows: Dataset) -> Dataset:
    """The same rows, whose images, sounds and the like come as they are stored; decoded ones have no lasting value."""
    features = Features(_undecoded(dict(rows.features)))
    return Dataset(rows.with_format("arrow")[:], info=DatasetInfo(features=features))


def _undecoded(feature: Any) -> Any:  # noqa: ANN401  a feature, or several in a dict or list
    if isinstance(feature, dict):
        return {name: _undecoded(part) for name, part in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(part) for part in feature]
    if isinstance(feature, List | LargeList):
        return replace(feature, feature=_undecoded(feature.feature))
    return replace(feature, decode=False) if hasattr(feature, "decode") else feature


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the progress bars of `datasets` where a command shows its own."""
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sampled_digest(paths: Sequence[Path]) -> str:
    """Hex SHA-256 of names, sizes and evenly spread pieces of large files: a training leaves none of them alike."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as stream:
            for place in range(0, size, max(size // SAMPLES, SAMPLE)):
                stream.seek(place)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()
