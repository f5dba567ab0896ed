"""Compare the rows to publish with those that are published: how many are added, removed and changed."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from larf_curate.columns import ROW_ID, source_columns
from larf_curate.publish.kept_rows import BATCH_ROWS

_DIGESTS = np.dtype([("key", "S16"), ("value", "S16")])


@dataclass(frozen=True, kw_only=True)
class RowDiff:
    """Numbers of rows that publishing adds, removes, changes and leaves as they are.

    Args:
        added: Rows that are not published yet.
        removed: Published rows that are not among the new ones.
        changed: Rows that differ in any column; 0 if rows are compared by their content.
        unchanged: Rows that stay.
        by: How rows are recognised: by their ids, or, if one of the two sides has none, by the source's columns.
    """

    added: int
    removed: int
    changed: int
    unchanged: int
    by: Literal["larf_row_id", "content"]


def compare_rows(
    published: Iterable[AbstractContextManager[Any]], new: Iterable[AbstractContextManager[Any]]
) -> RowDiff:
    """Compare two sets of Parquet shards; of each row, 64 bytes stay in memory.

    Args:
        published: Context managers that give the path of each published shard, one at a time.
        new: The same for the shards to publish.
    """
    before, after = ([*_read(shards)] for shards in (published, new))
    by_id = all(ids for ids, _, _ in (*before, *after))
    old, current = (_joined(parts, by_id=by_id) for parts in (before, after))
    keys = [np.unique(rows["key"], return_index=True, return_counts=True) for rows in (old, current)]
    (old_keys, old_first, old_counts), (new_keys, new_first, new_counts) = keys
    _, in_old, in_new = np.intersect1d(old_keys, new_keys, assume_unique=True, return_indices=True)
    common = int(np.minimum(old_counts[in_old], new_counts[in_new]).sum())
    changed = int((old["value"][old_first[in_old]] != current["value"][new_first[in_new]]).sum()) if by_id else 0
    return RowDiff(
        added=len(current) - common,
        removed=len(old) - common,
        changed=changed,
        unchanged=common - changed,
        by="larf_row_id" if by_id else "content",
    )


def _read(shards: Iterable[AbstractContextManager[Any]]) -> Iterator[tuple[bool, NDArray[Any], NDArray[Any]]]:
    """Of each shard: whether it has row ids, digests of ids and of whole rows, and those of the source's columns."""
    for opened in shards:
        with opened as path, pq.ParquetFile(path) as shard:
            has_ids = ROW_ID in shard.schema_arrow.names
            rows = (row for batch in shard.iter_batches(BATCH_ROWS) for row in batch.to_pylist())
            found = np.fromiter(((*_by_id(row), _content(row)) for row in rows), np.dtype("S16,S16,S16"))
        yield has_ids, _pairs(found["f0"], found["f1"]), _pairs(found["f2"], found["f2"])


def _pairs(keys: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    pairs = np.empty(len(keys), _DIGESTS)
    pairs["key"], pairs["value"] = keys, values
    return pairs


def _joined(parts: list[tuple[bool, NDArray[Any], NDArray[Any]]], *, by_id: bool) -> NDArray[Any]:
    chosen = [ids if by_id else content for _, ids, content in parts]
    return np.concatenate([np.empty(0, _DIGESTS), *chosen])


def _by_id(row: Mapping[str, Any]) -> tuple[bytes, bytes]:
    return _digest(row.get(ROW_ID)), _digest(row)


def _content(row: Mapping[str, Any]) -> bytes:
    return _digest({name: row[name] for name in source_columns(row)})


def _digest(value: object) -> bytes:
    text = json.dumps(value, sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=16).digest()
