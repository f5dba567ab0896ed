"""The Parquet shards of a publication: those of the kept rows, with media embedded and some columns left out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from larf_curate.columns import ROW_ID, SCORE, source_columns
from larf_curate.errors import InputError
from larf_curate.files import PAGE_OPTIONS
from larf_curate.publish.kept_rows import KeptRows
from larf_curate.publish.media import ROWS_PER_GROUP, MediaEmbedder, has_media

Columns = Literal["source", "scores", "all"]
COLUMNS: tuple[Columns, ...] = ("source", "scores", "all")
DECISION = "larf_decision"
"""Column of the reviewers' decision; without a review, it is of an earlier one."""
ORIGINAL = "larf_original_answer"
"""Column of the answers that reviewers edited away, which are never published."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Parquet files by their path in the repository.

    Args:
        files: Local file by path, in row order.
        features: Columns and types that all files share.
        folder: Folder of the files in the repository.
        split: Name of their split.
        rows: Total number of rows.
        num_bytes: Total size of the columns in bytes, uncompressed.
    """

    files: dict[str, Path]
    features: Features
    folder: str
    split: str
    rows: int
    num_bytes: int

    @property
    def pattern(self) -> str:
        """Glob pattern of the paths."""
        return f"{self.folder}/{self.split}-*"


def stage_shards(kept_rows: KeptRows, staging: Path, *, columns: Columns = "scores") -> Shards:
    """Give the shards of the kept rows the names that the Hub expects, and drop columns that are not published.

    Media are embedded.

    Args:
        kept_rows: The rows to publish.
        staging: New folder for the shards that are rewritten.
        columns: The columns of the source dataset alone (``source``), with row id, score and, of reviewed rows,
            decision (``scores``), or with all ``larf_*`` columns but the answers that were edited away (``all``).

    Returns:
        The files and their totals.

    Raises:
        InputError: If the shards do not all have the same schema, or media cannot be embedded.
    """
    staging.mkdir()
    schemas = [pq.read_schema(path) for path in kept_rows.shards]
    if any(not schema.equals(schemas[0]) for schema in schemas):
        raise InputError(f"the shards in {kept_rows.shards[0].parent} differ in their columns: write the folder again")
    all_features = Features.from_arrow_schema(schemas[0])
    published = _published(schemas[0].names, columns, is_reviewed=kept_rows.is_reviewed)
    features = Features({name: all_features[name] for name in published})
    embed = MediaEmbedder(features)
    paths = tuple(_copy(path, features, embed, staging / path.name) for path in kept_rows.shards)
    embed.report()
    return named_shards(paths, features, "data", kept_rows.split)


def named_shards(paths: tuple[Path, ...], features: Features, folder: str, split: str) -> Shards:
    """Shards under the names that the Hub expects, with their totals."""
    names = [f"{folder}/{split}-{i:05d}-of-{len(paths):05d}.parquet" for i in range(len(paths))]
    rows, num_bytes = _totals(paths)
    return Shards(
        files=dict(zip(names, paths, strict=True)),
        features=features,
        folder=folder,
        split=split,
        rows=rows,
        num_bytes=num_bytes,
    )


def read_parts(shard: pq.ParquetFile, columns: list[str], *, media: bool) -> Iterator[pa.Table]:
    """The row groups of a shard, or smaller parts if it has media."""
    if media:
        for batch in shard.iter_batches(ROWS_PER_GROUP, columns=columns):
            yield pa.Table.from_batches([batch]).select(columns)
        return
    for group in range(shard.num_row_groups):
        yield shard.read_row_group(group, columns=columns).select(columns)


def _published(names: list[str], columns: Columns, *, is_reviewed: bool) -> list[str]:
    """The names of the columns that are published, in order."""
    hidden = {ORIGINAL} if is_reviewed else {ORIGINAL, DECISION}
    if columns == "all":
        return [name for name in names if name not in hidden]
    added = {ROW_ID, SCORE, DECISION} - hidden if columns == "scores" else set()
    return [name for name in names if name in {*source_columns(names), *added}]


def _copy(path: Path, features: Features, embed: MediaEmbedder, target: Path) -> Path:
    """Copy a shard with only the columns in ``features`` and media embedded; returns ``target``.

    Only a part of the rows is in memory at a time. A shard in which nothing changes is not copied.
    """
    # The schema's metadata holds the features as JSON: unchanged, it would still list the dropped columns.
    metadata = features.arrow_schema.metadata
    media = has_media(features)
    with pq.ParquetFile(path) as shard:
        schema = pa.schema([shard.schema_arrow.field(name) for name in features], metadata=metadata)
        if not media and list(features) == shard.schema_arrow.names:
            for batch in shard.iter_batches():
                embed(pa.Table.from_batches([batch]))
            return path
        with pq.ParquetWriter(target, schema, **PAGE_OPTIONS) as writer:
            for table in read_parts(shard, list(features), media=media):
                writer.write_table(embed(table).replace_schema_metadata(metadata))
    return target


def _totals(paths: tuple[Path, ...]) -> tuple[int, int]:
    """Number of rows and uncompressed bytes of Parquet files, from their footers alone."""
    footers = [pq.read_metadata(path) for path in paths]
    groups = [footer.row_group(i) for footer in footers for i in range(footer.num_row_groups)]
    return sum(footer.num_rows for footer in footers), sum(group.total_byte_size for group in groups)
