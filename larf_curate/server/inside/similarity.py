"""Records by the cosine of their vectors, all of them compared at once with numpy."""

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_KEPT = 8

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Vectorised:
    """The vectors of one vector setting.

    Args:
        stamp: Changes whenever a vector does.
        records: Record ids, n of them.
        units: Their vectors scaled to length 1, shape (n, d); a zero vector stays zero.
    """

    stamp: tuple[object, ...]
    records: list[str]
    units: Vectors

    def ranked(self, value: list[float], *, least: bool) -> Iterator[tuple[str, float]]:
        """Record ids with their scores, best first: (1 + cosine) / 2 as Elasticsearch has it, in [0, 1].

        Args:
            value: The vector to compare with, d numbers.
            least: Rank by the opposite vector.
        """
        if not self.records or len(value) != self.units.shape[1]:
            return
        probe = _units(np.asarray([value], dtype=np.float32))[0]
        scores = (1 + self.units @ (-probe if least else probe)) / 2
        for place in np.argsort(-scores, kind="stable"):
            yield self.records[place], float(scores[place])


class VectorCache:
    """Keeps the vectors of the settings asked for last; reads them again when they changed."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Vectorised] = OrderedDict()

    def get(self, connection: sqlite3.Connection, setting: str) -> Vectorised:
        """The vectors of a setting, given by its id of 32 hex digits."""
        stamp = connection.execute(
            "SELECT count(*), max(updated_at), max(rowid) FROM vectors WHERE vector_settings_id = ?", (setting,)
        ).fetchone()
        kept = self._kept.get(setting)
        if kept is None or kept.stamp != stamp:
            kept = _read(connection, setting, stamp)
        self._kept[setting] = kept
        self._kept.move_to_end(setting)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return kept


def _read(connection: sqlite3.Connection, setting: str, stamp: tuple[object, ...]) -> Vectorised:
    rows = connection.execute(
        "SELECT record_id, value FROM vectors WHERE vector_settings_id = ? ORDER BY record_id", (setting,)
    ).fetchall()
    values = [np.asarray(json.loads(value), dtype=np.float32) for _, value in rows]
    return Vectorised(
        stamp, [record for record, _ in rows], _units(np.stack(values)) if rows else np.zeros((0, 0), "f4")
    )


def _units(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
