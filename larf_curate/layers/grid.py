"""Grid of blocks and scales, evaluated cell by cell with a checkpoint file."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from larf_curate.errors import InputError
from larf_curate.files import parse_json
from larf_curate.progress import progress
from larf_curate.records import STRICT, check_seal, parse_record, seal
from larf_curate.stats import Floats

ALPHAS = (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
"""Scales of the LARF paper."""

OUTERMOST = (ALPHAS[0], ALPHAS[-1])
"""The pair of scales that decides LARF's ranking; the others only break ties."""

Cell = Callable[[int, float], Sequence[float]]
"""Computes one cell: the value of every prompt, given a block and its scale."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A complete grid: the value of every prompt in every cell.

    Args:
        alphas: Scales in rising order.
        values: Values of shape (blocks, alphas, prompts).
    """

    alphas: tuple[float, ...]
    values: Floats

    @property
    def effects(self) -> Floats:
        """Values at the largest scale minus those at the smallest, shape (blocks, prompts)."""
        return np.asarray(self.values[:, -1] - self.values[:, 0])

    @property
    def gains(self) -> list[Floats]:
        """Differences of mean values for each pair of scales, the widest pair first, each of shape (blocks,)."""
        means = self.values.mean(-1)
        return [means[:, high] - means[:, low] for low, high in pairs(self.alphas)]


def check_alphas(alphas: Sequence[float]) -> tuple[float, ...]:
    """Sort scales and drop duplicates.

    Raises:
        InputError: If they are not positive and finite, or there are not as many below 1 as above.
    """
    ordered = tuple(sorted({float(alpha) for alpha in alphas}))
    below = sum(alpha < 1 for alpha in ordered)
    finite = all(map(math.isfinite, ordered))
    if not ordered or not finite or ordered[0] <= 0 or 1.0 in ordered or below * 2 != len(ordered):
        raise InputError(
            f"wanted positive, finite scales, as many below 1 as above, got {list(alphas)}: give for instance 0.7, 1.3"
        )
    return ordered


def pairs(alphas: Sequence[float]) -> list[tuple[int, int]]:
    """Index pairs of the scales that are compared, the widest pair first."""
    return [(index, len(alphas) - 1 - index) for index in range(len(alphas) // 2)]


def rank_blocks(*criteria: Floats) -> list[int]:
    """Rank blocks by the first criterion, highest first; ties by the next criteria, then by block number."""
    # Rounded, since ties of refusal rates must stay ties after subtractions in floating point.
    keys = [[-round(float(value), 9) for value in criterion] for criterion in criteria]
    return sorted(range(len(keys[0])), key=lambda block: tuple(key[block] for key in keys))


def evaluate_grid(cell: Cell, blocks: int, alphas: tuple[float, ...], store: "GridStore", *, title: str) -> Grid:
    """Evaluate all cells that are not stored yet, with a progress bar.

    Args:
        cell: Computes one cell.
        blocks: Number of blocks.
        alphas: Scales in rising order.
        store: Holds the finished cells, and receives the others.
        title: Label of the progress bar.
    """
    missing = [(block, alpha) for block in range(blocks) for alpha in alphas if (block, alpha) not in store.cells]
    for block, alpha in progress(missing, label=title, unit="cell"):
        store.add(block, alpha, cell(block, alpha))
    rows = [[store.cells[block, alpha] for alpha in alphas] for block in range(blocks)]
    return Grid(alphas, np.asarray(rows, np.float64))


class CellRecord(TypedDict):
    """A line of the file of a `GridStore`: the values of one cell, and the key of its grid."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    key: str
    block: int
    alpha: float
    values: list[float]
    digest: str


class GridStore:
    """Finished cells in a JSON Lines file, one per line, so that an interrupted grid can be resumed.

    Args:
        path: The file, which may also hold cells of other models or prompts; None to store nothing on disk.
        key: Digest of everything that a value depends on, except block and scale.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self.cells: dict[tuple[int, float], list[float]] = {}
        for line in path.read_bytes().split(b"\n") if path is not None and path.exists() else []:
            self._read(line)

    def add(self, block: int, alpha: float, values: Sequence[float]) -> None:
        """Store one cell; it is on disk when this returns."""
        self.cells[block, alpha] = list(values)
        if self._path is None:
            return
        cell = {"key": self._key, "block": block, "alpha": alpha, "values": list(values)}
        line = json.dumps(seal(cell), allow_nan=False)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:  # the leading newline ends a line that a crash has cut off
            stream.write(f"\n{line}\n".encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self, line: bytes) -> None:
        path, remedy = str(self._path), "it is computed again"
        try:
            cell = parse_record(parse_json(line.decode(), path), CellRecord, path=path, remedy=remedy)
            check_seal(cell, path=path, remedy=remedy)
        except ValueError:  # an empty line, one cut off by a crash, or a damaged one
            return
        if cell["key"] == self._key:
            self.cells[cell["block"], cell["alpha"]] = cell["values"]
