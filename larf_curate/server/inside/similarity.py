"""Similarity search: cosine similarity to all vectors of a vector setting at once, with numpy."""

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CACHE_SIZE = 8

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class VectorIndex:
    """The vectors of one vector setting.

    Args:
        fingerprint: Changes whenever a vector is added, changed or deleted.
        records: Record ids, of length n.
        unit_vectors: The vectors scaled to length 1, shape (n, d); a zero vector stays zero.
    """

    fingerprint: tuple[object, ...]
    records: list[str]
    unit_vectors: Vectors

    def ranked(self, value: list[float], *, least: bool) -> Iterator[tuple[str, float]]:
        """Yield record ids with their scores, highest first.

        The score is (1 + cosine) / 2, in [0, 1], as Elasticsearch defines it. Nothing is yielded if the vector's length
        is not d.

        Args:
            value: The vector to compare with, shape (d,).
            least: Rank the least similar records first: compare with the opposite vector.
        """
        if not self.records or len(value) != self.unit_vectors.shape[1]:
            return
        probe = _normalize(np.asarray([value], dtype=np.float32))[0]
        scores = (1 + self.unit_vectors @ (-probe if least else probe)) / 2
        for index in np.argsort(-scores, kind="stable"):
            yield self.records[index], float(scores[index])


class VectorCache:
    """Cache of the most recently used vector settings; a setting is read again when its vectors have changed."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[str, VectorIndex] = OrderedDict()

    def get(self, connection: sqlite3.Connection, setting: str) -> VectorIndex:
        """Return the vectors of a setting.

        Args:
            connection: From ``store.connect``.
            setting: Id of the vector setting, 32 hex digits.
        """
        # Cheap compared with reading and parsing all vectors, which are stored as JSON.
        fingerprint = connection.execute(
            "SELECT count(*), max(updated_at), max(rowid) FROM vectors WHERE vector_settings_id = ?", (setting,)
        ).fetchone()
        index = self._indexes.get(setting)
        if index is None or index.fingerprint != fingerprint:
            index = _read(connection, setting, fingerprint)
        self._indexes[setting] = index
        self._indexes.move_to_end(setting)
        while len(self._indexes) > _CACHE_SIZE:
            self._indexes.popitem(last=False)
        return index


def _read(connection: sqlite3.Connection, setting: str, fingerprint: tuple[object, ...]) -> VectorIndex:
    rows = connection.execute(
        "SELECT record_id, value FROM vectors WHERE vector_settings_id = ? ORDER BY record_id", (setting,)
    ).fetchall()
    records = [record for record, _ in rows]
    values = [np.asarray(json.loads(value), dtype=np.float32) for _, value in rows]
    return VectorIndex(fingerprint, records, _normalize(np.stack(values)) if rows else np.zeros((0, 0), "f4"))


def _normalize(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
