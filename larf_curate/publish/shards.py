"""The Parquet shards of a publication: those of the kept rows, rewritten only if some columns are not published."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from larf_curate.columns import ROW_ID, source_columns
from larf_curate.errors import InputError
from larf_curate.publish.kept_rows import KeptRows

PUBLISHED_COLUMNS = (ROW_ID, "larf_score", "larf_decision")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Parquet files by their path in the repository.

    Args:
        files: Local file by path, in row order.
        features: Columns and types that all files share.
        rows: Total number of rows.
        num_bytes: Total size of the columns in bytes, uncompressed.
    """

    files: dict[str, Path]
    features: Features
    rows: int
    num_bytes: int


def stage_shards(kept_rows: KeptRows, staging: Path) -> Shards:
    """Give the shards of the kept rows the names that the Hub expects, and drop columns that are not published.

    The columns of the source dataset and ``PUBLISHED_COLUMNS`` are published; other ``larf_*`` columns are not.

    Args:
        kept_rows: The rows to publish.
        staging: Empty folder for the shards that are rewritten.

    Returns:
        The files and their totals.

    Raises:
        InputError: If the shards do not all have the same schema.
    """
    schemas = [pq.read_schema(path) for path in kept_rows.shards]
    if any(not schema.equals(schemas[0]) for schema in schemas):
        raise InputError(f"the shards in {kept_rows.shards[0].parent} differ in their columns: write the folder again")
    published = {*source_columns(schemas[0].names), *PUBLISHED_COLUMNS}
    columns = [name for name in schemas[0].names if name in published]
    all_features = Features.from_arrow_schema(schemas[0])
    features = Features({name: all_features[name] for name in columns})
    paths = kept_rows.shards
    if columns != schemas[0].names:  # otherwise the files are published as they are
        paths = tuple(_copy_columns(path, features, staging / path.name) for path in kept_rows.shards)
    names = [f"data/train-{i:05d}-of-{len(paths):05d}.parquet" for i in range(len(paths))]
    rows, num_bytes = _totals(paths)
    return Shards(files=dict(zip(names, paths, strict=True)), features=features, rows=rows, num_bytes=num_bytes)


def _copy_columns(path: Path, features: Features, target: Path) -> Path:
    """Copy a shard with only the columns in ``features``, one row group in memory at a time; returns ``target``."""
    # The schema's metadata holds the features as JSON: unchanged, it would still list the dropped columns.
    metadata = features.arrow_schema.metadata
    with pq.ParquetFile(path) as shard:
        schema = pa.schema([shard.schema_arrow.field(name) for name in features], metadata=metadata)
        with pq.ParquetWriter(target, schema) as writer:
            for group in range(shard.num_row_groups):
                table = shard.read_row_group(group).select(list(features))
                writer.write_table(table.replace_schema_metadata(metadata))
    return target


def _totals(paths: tuple[Path, ...]) -> tuple[int, int]:
    """Number of rows and uncompressed bytes of Parquet files, from their footers alone."""
    footers = [pq.read_metadata(path) for path in paths]
    groups = [footer.row_group(i) for footer in footers for i in range(footer.num_row_groups)]
    return sum(footer.num_rows for footer in footers), sum(group.total_byte_size for group in groups)
