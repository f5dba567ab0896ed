"""The Parquet files of a publication: the shards of the kept rows as they are, or without the columns kept back."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from larf_curate.errors import InputError
from larf_curate.publish.kept_rows import Source

PUBLISHED_COLUMNS = ("larf_row_id", "larf_score", "larf_decision")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Parquet files by their path in the repository.

    Args:
        files: Local file of each path, in row order.
        features: Column types of all of them.
        rows: Rows in all.
        num_bytes: Bytes of the columns before compression.
    """

    files: dict[str, Path]
    features: Features
    rows: int
    num_bytes: int


def stage_shards(source: Source, staging: Path) -> Shards:
    """Name the kept shards as the Hub wants them; those that hold more columns than are published are rewritten.

    Published are the source's columns and ``PUBLISHED_COLUMNS``.

    Args:
        source: What is to be published.
        staging: An empty folder for rewritten shards.

    Returns:
        The files and what they hold.

    Raises:
        InputError: If the shards differ in their columns.
    """
    schemas = [pq.read_schema(path) for path in source.shards]
    if any(not schema.equals(schemas[0]) for schema in schemas):
        raise InputError(f"the shards in {source.shards[0].parent} differ in their columns: write the folder again")
    columns = [name for name in schemas[0].names if not name.startswith("larf_") or name in PUBLISHED_COLUMNS]
    everything = Features.from_arrow_schema(schemas[0])
    features = Features({name: everything[name] for name in columns})
    paths = source.shards
    if columns != schemas[0].names:
        paths = tuple(_select(path, features, staging / path.name) for path in source.shards)
    names = [f"data/train-{i:05d}-of-{len(paths):05d}.parquet" for i in range(len(paths))]
    rows, num_bytes = _size(paths)
    return Shards(files=dict(zip(names, paths, strict=True)), features=features, rows=rows, num_bytes=num_bytes)


def _select(path: Path, features: Features, to: Path) -> Path:
    """Copy a shard with only the columns of ``features``, one row group in memory at a time."""
    metadata = features.arrow_schema.metadata
    with pq.ParquetFile(path) as shard:
        schema = pa.schema([shard.schema_arrow.field(name) for name in features], metadata=metadata)
        with pq.ParquetWriter(to, schema) as writer:
            for group in range(shard.num_row_groups):
                table = shard.read_row_group(group).select(list(features))
                writer.write_table(table.replace_schema_metadata(metadata))
    return to


def _size(paths: tuple[Path, ...]) -> tuple[int, int]:
    """Rows and uncompressed bytes of Parquet files, from their footers."""
    footers = [pq.read_metadata(path) for path in paths]
    groups = [footer.row_group(i) for footer in footers for i in range(footer.num_row_groups)]
    return sum(footer.num_rows for footer in footers), sum(group.total_byte_size for group in groups)
