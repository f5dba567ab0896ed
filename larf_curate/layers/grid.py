"""The grid of blocks and scales: which cells there are, and what is known of them already."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from larf_curate.errors import InputError
from larf_curate.stats import Floats

ALPHAS = (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
"""The scales of the paper."""

OUTERMOST = (ALPHAS[0], ALPHAS[-1])
"""The pair that decides LARF's ranking; the others settle ties."""

Cell = Callable[[int, float], Sequence[float]]
"""Gives the value of every prompt with one block scaled."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Values of every prompt in every cell.

    Args:
        alphas: Scales in rising order.
        values: Shape (blocks, alphas, prompts).
    """

    alphas: tuple[float, ...]
    values: Floats

    @property
    def effects(self) -> Floats:
        """How much more a prompt's value is at the largest than at the smallest scale, shape (blocks, prompts)."""
        return np.asarray(self.values[:, -1] - self.values[:, 0])

    @property
    def gains(self) -> list[Floats]:
        """Differences of the mean values at each pair of scales, the widest pair first, each of shape (blocks,)."""
        means = self.values.mean(-1)
        return [means[:, high] - means[:, low] for low, high in pairs(self.alphas)]


def check_alphas(alphas: Sequence[float]) -> tuple[float, ...]:
    """Sort scales.

    Raises:
        InputError: If there are not as many below 1 as above.
    """
    ordered = tuple(sorted({float(alpha) for alpha in alphas}))
    below = sum(alpha < 1 for alpha in ordered)
    finite = all(map(math.isfinite, ordered))
    if not ordered or not finite or ordered[0] <= 0 or 1.0 in ordered or below * 2 != len(ordered):
        raise InputError(
            f"wanted positive, finite scales, as many below 1 as above, got {list(alphas)}: for instance 0.7, 1.3"
        )
    return ordered


def pairs(alphas: Sequence[float]) -> list[tuple[int, int]]:
    """Positions of the scales that are compared, the widest pair first."""
    return [(index, len(alphas) - 1 - index) for index in range(len(alphas) // 2)]


def ranking(*criteria: Floats) -> list[int]:
    """Blocks by the first criterion, ties by the next ones, high values first, then by number."""
    keys = [[-round(float(value), 9) for value in criterion] for criterion in criteria]
    return sorted(range(len(keys[0])), key=lambda block: tuple(key[block] for key in keys))


def fill(cell: Cell, blocks: int, alphas: tuple[float, ...], store: "GridStore", *, title: str) -> Grid:
    """Evaluate all cells that are not known yet, with a progress bar.

    Args:
        cell: Evaluates one.
        blocks: Number of blocks.
        alphas: Scales in rising order.
        store: What is known already, and where to keep the rest.
        title: What to call the progress bar.
    """
    todo = [(block, alpha) for block in range(blocks) for alpha in alphas if (block, alpha) not in store.known]
    for block, alpha in tqdm(todo, desc=title, unit="cell"):
        store.add(block, alpha, cell(block, alpha))
    rows = [[store.known[block, alpha] for alpha in alphas] for block in range(blocks)]
    return Grid(alphas, np.asarray(rows, np.float64))


class GridStore:
    """Cells kept in a file of JSON lines, one a cell, so that an interrupted grid goes on where it stopped.

    Args:
        path: The file, which may hold cells of other models or prompts too; None to keep nothing.
        key: Digest of everything but block and scale that a value depends on.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self.known: dict[tuple[int, float], list[float]] = {}
        for line in path.read_bytes().split(b"\n") if path is not None and path.exists() else []:
            self._read(line)

    def add(self, block: int, alpha: float, values: Sequence[float]) -> None:
        """Keep one cell, on disk before this returns."""
        self.known[block, alpha] = list(values)
        if self._path is None:
            return
        line = json.dumps({"key": self._key, "block": block, "alpha": alpha, "values": list(values)})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as stream:  # a line cut off by a crash is closed by the next line's first byte
            stream.write(f"\n{line}\n".encode())
            stream.flush()
            os.fsync(stream.fileno())

    def _read(self, line: bytes) -> None:
        try:
            cell = json.loads(line)
            if cell["key"] == self._key:
                self.known[cell["block"], cell["alpha"]] = [float(value) for value in cell["values"]]
        except (ValueError, KeyError, TypeError, RecursionError):  # an empty line, or one cut off by a crash
            return
