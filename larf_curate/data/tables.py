"""Read and write datasets as Parquet shards; each shard is written atomically."""

import glob
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo, Features, Json, LargeList, List, Value
from datasets.exceptions import DatasetsError
from datasets.fingerprint import get_temporary_cache_files_directory
from numpy.typing import NDArray

from larf_curate.errors import InputError
from larf_curate.files import PAGE_OPTIONS, atomic_path, remove_temporary_files
from larf_curate.manifests import ShardRecord, shard_record, visible_shards

ROWS_PER_SHARD = 100_000
"""Maximum number of rows per Parquet shard."""
BATCH_ROWS = 1000
"""Rows that are read together of a dataset of any length."""
STORED = {"bytes": Value("binary"), "path": Value("string")}
"""Type of media as they are stored."""
GROUP_BYTES = 32 * 2**20
"""Approximate size of a row group in memory."""
MEDIA_ROWS = 100
"""Number of rows of a row group with media, as on the Hub."""


def write_parquet(dataset: Dataset, folder: str | Path) -> list[Path]:
    """Write a dataset as Parquet shards of at most `ROWS_PER_SHARD` rows.

    An empty dataset becomes one empty shard, so that its columns are stored.

    Args:
        dataset: The rows.
        folder: Folder of the shards; it is created if needed.

    Returns:
        Paths of the shards, in row order.
    """
    remove_temporary_files(Path(folder))
    paths = [Path(folder) / name for name in shard_names(dataset)]
    for index, path in enumerate(paths):
        with atomic_path(path) as temporary:
            _write_shard(dataset.shard(len(paths), index, contiguous=True), temporary)
    return paths


def shard_names(dataset: Dataset) -> list[str]:
    """Names of the files that `write_parquet` writes."""
    count = max(1, -(-len(dataset) // ROWS_PER_SHARD))
    return [f"part-{i:05d}-of-{count:05d}.parquet" for i in range(count)]


def _write_shard(rows: Dataset, path: Path) -> None:
    """Write rows as `Dataset.to_parquet` does, one group after the other: wide states take gigabytes together."""
    group, table = _rows_per_group(rows), rows.with_format("arrow")
    with pq.ParquetWriter(path, rows.features.arrow_schema, **PAGE_OPTIONS) as writer:
        for start in range(0, max(len(rows), 1), group):
            writer.write_table(_group(table, start, min(start + group, len(rows))))


def _group(table: Dataset, start: int, stop: int) -> pa.Table:
    """Rows of a dataset in Arrow format as one chunk, which is ten times as fast to write.

    Selected rows come as a chunk each, which takes more memory than its content: so only a part of them at a time.
    """
    starts = range(start, max(stop, start + 1), BATCH_ROWS)
    parts = [table[first : min(first + BATCH_ROWS, stop)].combine_chunks() for first in starts]
    return pa.concat_tables(parts).combine_chunks()


def _rows_per_group(rows: Dataset) -> int:
    """Number of rows of a row group: few with media, as on the Hub, else as many as are `GROUP_BYTES` large."""
    if media_undecoded(rows.features) != rows.features:
        return MEDIA_ROWS
    return max(1, GROUP_BYTES * len(rows.data) // max(rows.data.nbytes, 1)) if len(rows) else 1


def write_parts(parts: Mapping[str, Dataset], folder: Path) -> list[ShardRecord]:
    """Write several datasets with `write_parquet`, each into a subfolder.

    Args:
        parts: The datasets by name of the subfolder.
        folder: Result folder.

    Returns:
        A record of each shard.
    """
    remove_temporary_files(folder)
    paths = [path for name, rows in parts.items() for path in write_parquet(rows, folder / name)]
    return [shard_record(path, pq.read_metadata(path).num_rows, folder=folder) for path in paths]


def part_files(parts: Mapping[str, Dataset]) -> list[str]:
    """Paths of the files that `write_parts` writes, in the result folder."""
    return [f"{name}/{shard}" for name, rows in parts.items() for shard in shard_names(rows)]


def _dataset(table: pa.Table, features: Features) -> Dataset:
    """A dataset of a table; one without rows gets an empty chunk per column."""
    if not len(table):  # `datasets` cannot digest a column of an extension type, such as Json, that has no chunk
        table = pa.table([pa.nulls(0, column) for column in table.schema.types], schema=table.schema)
    # Without a fingerprint, `datasets` copies and hashes the content; tables in memory need none for a cache.
    return Dataset(table, info=DatasetInfo(features=features), fingerprint=uuid4().hex)


def written_aside(tables: Iterable[pa.Table], features: Features) -> Dataset:
    """A dataset of tables that are written to a temporary file one by one, and mapped from there: not in memory.

    The file is deleted when the process ends. It is in the system's temporary folder, as those of `datasets` are.
    """
    path = Path(get_temporary_cache_files_directory()) / f"{uuid4().hex}.arrow"
    with pa.ipc.new_stream(str(path), features.arrow_schema) as writer:
        for table in tables:
            writer.write_table(table)
    return Dataset.from_file(str(path))


def rows_at(rows: Dataset, indices: NDArray[np.integer[Any]]) -> Dataset:
    """The rows at these indices, as ``rows.select(indices)``, which would make a Python object of each index."""
    if not len(indices):
        return rows.select([])
    table = pa.table({"indices": pa.array(indices, pa.uint64())})
    return Dataset(rows.data, info=rows.info, split=rows.split, indices_table=table, fingerprint=uuid4().hex)


def read_column(rows: Dataset, name: str) -> Iterator[Any]:
    """The values of a column, of which at most `BATCH_ROWS` are in memory as Python objects."""
    for batch in rows.select_columns([name]).with_format(None).iter(BATCH_ROWS):
        yield from batch[name]


def read_parquet(folder: str | Path) -> Dataset:
    """Read all Parquet shards of a folder as one dataset, in name order, without hidden files.

    Raises:
        InputError: If the folder has none, or one is damaged.
    """
    try:
        return _read_parquet(folder)
    except (DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"cannot read the Parquet files in {folder}: {reason}; write them again") from error


def _read_parquet(folder: str | Path) -> Dataset:
    paths = visible_shards(Path(folder))
    if not paths:
        raise InputError(f"no Parquet files in {folder}: give the folder that a larf-curate command wrote")
    if not any(pq.read_metadata(path).num_rows for path in paths):  # `datasets` cannot read files without rows
        table = pq.read_table(paths[0])
        return _dataset(table, Features.from_arrow_schema(table.schema))
    with no_progress_bars():
        return Dataset.from_parquet([glob.escape(str(path)) for path in paths])


def undecoded(rows: Dataset) -> Dataset:
    """Return the same rows, with images, audio and other media as they are stored (bytes or path) instead of decoded.

    Stored values can be written back unchanged and have a stable digest, and reading them cannot fail on damaged media.
    JSON columns are decoded as always: their stored form is the source text of the value.
    """
    return _dataset(rows.with_format("arrow")[:], media_undecoded(rows.features))


def text_rows(rows: Dataset) -> Dataset:
    """The rows as they are rendered: without media columns, and media within other columns as they are stored."""
    text = [name for name, feature in rows.features.items() if not is_media(feature)]
    return undecoded(rows.select_columns(text))


def from_undecoded(rows: Sequence[Mapping[str, Any]], features: Features) -> Dataset:
    """The reverse of `undecoded`: a dataset of rows whose media are as they are stored.

    `Dataset.from_list` needs the libraries that decode media, even to store them unchanged.
    """
    stored = Dataset.from_list([dict(row) for row in rows], features=_with_media(features, lambda _: STORED))
    return _dataset(stored.with_format("arrow")[:], features)


def as_stored(rows: Dataset) -> Dataset:
    """The same rows with plain structs of ``bytes`` and ``path`` for media.

    `Dataset.save_to_disk` reads whichever files media refer to, and stores their bytes: of plain structs it does not.
    """
    table = rows.with_format("arrow")[:].replace_schema_metadata(None)  # which has the types too
    return _dataset(table, _with_media(rows.features, lambda _: STORED))


def holds_media(features: Features) -> bool:
    """Whether there are media at any depth; comparing features takes twice as long with each level of nesting."""
    found: list[Any] = []
    _with_media(features, lambda feature: found.append(feature))
    return bool(found)


def media_undecoded(features: Features) -> Features:
    """The same column types, with ``decode=False`` for media at any depth."""
    return _with_media(features, lambda feature: replace(feature, decode=False))


def is_media(feature: object) -> bool:
    """Whether a type decodes files, such as images or audio; JSON is decoded too, but is a value and not a file."""
    return hasattr(feature, "decode") and not isinstance(feature, Json)


def _with_media(features: Features, media: Callable[[Any], Any]) -> Features:
    """The same column types, with other ones for media at any depth."""

    def changed(feature: Any) -> Any:  # noqa: ANN401  a feature, or a dict or list of features
        if isinstance(feature, dict):
            return {name: changed(part) for name, part in feature.items()}
        if isinstance(feature, list):
            return [changed(part) for part in feature]
        if isinstance(feature, List | LargeList):
            return replace(feature, feature=changed(feature.feature))
        return media(feature) if is_media(feature) else feature

    return Features(changed(dict(features)))


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable the progress bars of `datasets`, for commands that show their own, and restore them afterwards."""
    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
