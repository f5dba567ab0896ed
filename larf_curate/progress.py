"""Progress bars of long steps on standard error: one per step, with its rate and the time left."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tqdm.auto import tqdm

FILE_SECONDS: Final = 10.0
"""Seconds between two lines of a bar in a file, such as the log of a job; in a terminal, it is redrawn in place."""
BAR_WIDTH: Final = 48
"""Columns that a bar needs beside its label; if a terminal has fewer, the figures are shown without it."""
WITHOUT_BAR: Final = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_hidden = False
_part = ""


def progress(
    items: Iterable[Any] | None = None,
    *,
    label: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
    leave: bool = True,
) -> "tqdm[Any]":
    """Show the progress of a step, as a ``tqdm`` bar.

    Args:
        items: What is iterated over; default: the caller advances the bar with ``update``.
        label: Name of the step.
        unit: What is counted, in the singular.
        total: Number of units; default: the length of ``items``.
        done: Units that were done before.
        leave: Whether the bar stays when the step has ended.
    """
    name = f"{_part}: {label}" if _part else label
    terminal, columns = sys.stderr.isatty(), shutil.get_terminal_size().columns
    return tqdm(
        items,
        desc=name,
        bar_format=WITHOUT_BAR if terminal and columns < len(name) + BAR_WIDTH else None,
        unit=unit,
        total=total,
        initial=done,
        leave=leave,
        disable=_hidden,
        mininterval=0.1 if terminal else FILE_SECONDS,
    )


@contextmanager
def part_of_run(name: str) -> Iterator[None]:
    """Begin the labels of all bars inside a ``with`` block with the name of a part; nested names follow each other."""
    global _part
    before = _part
    _part = f"{before}, {name}" if before else name
    try:
        yield
    finally:
        _part = before


@contextmanager
def no_progress() -> Iterator[None]:
    """Show no bars of `progress` inside a ``with`` block."""
    global _hidden
    before, _hidden = _hidden, True
    try:
        yield
    finally:
        _hidden = before
