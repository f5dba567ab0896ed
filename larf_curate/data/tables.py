"""Tables on disk: datasets as Parquet shards, whole or absent."""

import glob
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo, Features, LargeList, List

from larf_curate.errors import InputError
from larf_curate.files import atomic_path

ROWS_PER_SHARD = 100_000


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
        with atomic_path(path) as aside, no_progress_bars():
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
