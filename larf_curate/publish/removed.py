"""The rows that are not published as data, as a configuration of their own: scores and reasons, texts only if asked."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from larf_curate.columns import ROW_ID, SCORE, source_columns
from larf_curate.errors import InputError
from larf_curate.files import PAGE_OPTIONS
from larf_curate.publish.kept_rows import BATCH_ROWS, KeptRows
from larf_curate.publish.media import ROWS_PER_GROUP, MediaEmbedder, has_media
from larf_curate.publish.shards import DECISION, Shards, named_shards

FOLDER = "removed"
REASON, NEIGHBORS = "larf_reason", "larf_neighbors"
NEAREST = ("id", "label", "cosine")
"""Fields of the nearest exemplar that are published: none of them is its text."""
FEATURES = Features(
    {
        ROW_ID: Value("string"),
        SCORE: Value("float32"),
        REASON: Value("string"),
        DECISION: Value("string"),
        "larf_nearest_id": Value("string"),
        "larf_nearest_label": Value("string"),
        "larf_nearest_cosine": Value("float32"),
    }
)
"""Columns of a row without its text: scalars, of which the Hub draws histograms."""
DECISIONS = {"removed": "remove", "withheld": "withheld", "flagged": "not reviewed"}
"""Decision on rows whose folder has no column of it, by the name of that folder."""


def stage_removed(kept_rows: KeptRows, staging: Path, *, include_text: bool = False) -> Shards | None:
    """Write all rows that are not published: removed and withheld ones, or those that nobody reviewed.

    Args:
        kept_rows: The folder's rows.
        staging: New folder for the shards.
        include_text: Whether to write the columns of the source dataset too, with media embedded.

    Returns:
        The files, with the columns `FEATURES`; None if all rows are published.

    Raises:
        InputError: If the rows have other columns than the kept ones, or media cannot be embedded.
    """
    shards = [path for path in kept_rows.excluded if pq.read_metadata(path).num_rows]
    if not shards:
        return None
    staging.mkdir()
    source = _source_features(kept_rows.shards[0]) if include_text else Features({})
    features = Features({**source, **FEATURES})
    embed = MediaEmbedder(source)
    paths = []
    for index, path in enumerate(shards):
        paths.append(staging / f"{index:05d}.parquet")
        with pq.ParquetWriter(paths[-1], features.arrow_schema, **PAGE_OPTIONS) as writer:
            for table in _tables(path, source, is_reviewed=kept_rows.is_reviewed):
                written = embed(table).cast(features.arrow_schema)
                writer.write_table(written.replace_schema_metadata(features.arrow_schema.metadata))
    embed.report()
    return named_shards(tuple(paths), features, FOLDER, kept_rows.split)


def _source_features(shard: Path) -> Features:
    features = Features.from_arrow_schema(pq.read_schema(shard))
    return Features({name: features[name] for name in source_columns(features)})


def _tables(path: Path, source: Features, *, is_reviewed: bool) -> Iterator[pa.Table]:
    """The rows of a shard with the columns ``source`` and `FEATURES`, a part at a time."""
    with pq.ParquetFile(path) as shard:
        names = shard.schema_arrow.names
        if missing := [name for name in source if name not in names]:
            raise InputError(f"{path} has no column {missing[0]}, which the kept rows have: write the folder again")
        wanted = [ROW_ID, SCORE, REASON, NEIGHBORS, *([DECISION] if is_reviewed else [])]
        read = [*source, *(name for name in wanted if name in names)]
        for batch in shard.iter_batches(ROWS_PER_GROUP if has_media(source) else BATCH_ROWS, columns=read):
            table = pa.Table.from_batches([batch])
            added = {name: table[name] for name in (ROW_ID, SCORE, REASON, DECISION) if name in read}
            added |= {name: [None] * len(table) for name in FEATURES if name not in added}
            if DECISION not in read:
                added[DECISION] = [DECISIONS[path.parent.name]] * len(table)
            if NEIGHBORS in read:
                added |= _nearest(table[NEIGHBORS])
            columns = {name: table[name] for name in source} | {name: added[name] for name in FEATURES}
            yield pa.table({name: _typed(values, name) for name, values in columns.items()})


def _typed(values: pa.ChunkedArray | list[object], name: str) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, FEATURES[name].pa_type)]) if isinstance(values, list) else values


def _nearest(neighbors: pa.ChunkedArray) -> dict[str, list[object]]:
    """The nearest exemplar of each row, by column; None where there is none."""
    first = [cell[0] if cell else {} for cell in neighbors.to_pylist()]
    return {f"larf_nearest_{field}": [found.get(field) for found in first] for field in NEAREST}
