"""Rows that end the process that scores them, by a crash of native code or for lack of memory: found and set aside.

A crash leaves no exception, only a dead process: so such rows are found by scoring them in worker processes, first
batch by batch, then the rows of a batch that did not survive one by one.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from larf_curate.columns import GUARD, SCORE
from larf_curate.data.tables import text_rows
from larf_curate.errors import ScoringError
from larf_curate.scoring.workers import rank_and_payload, workers

if TYPE_CHECKING:
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.scorer import LarfScorer

CRASHED = "crashed"
"""Value of ``larf_status`` of rows that were set aside."""
MOST_IN_A_ROW = 3
"""Number of adjacent rows that are set aside without a doubt; at one more, it is checked that others do not crash."""
_CELLS: dict[str, Any] = {"larf_status": CRASHED, GUARD: {"request": None, "answer": None, "status": CRASHED}}
"""Values of a row that was set aside; None in all other columns."""


def crashing_rows(
    rows: Dataset,
    scorer: "LarfScorer",
    guard: "GuardScorer | None",
    *,
    batch_rows: int,
    first: int = 0,
    control: Dataset | None = None,
) -> list[int]:
    """Find the rows that end a worker process which scores them.

    If many adjacent rows do, or all rows, one that was scored before is scored again: if it now crashes too, the model
    or the machine is at fault; and also if there is none.

    Args:
        rows: The rows; each batch of them is scored once more.
        scorer: The scorer.
        guard: The guard model, if any.
        batch_rows: Number of rows that are scored together while nothing crashes.
        first: Number of the first row in its source, for the error message.
        control: One row that was scored before in this run, if any.

    Returns:
        Indices of the rows, rising; none if all of them can be scored in one worker process.

    Raises:
        ScoringError: If the model or the machine is at fault. Without ``control``, a few rows that all crash are not
            enough for that: over `MOST_IN_A_ROW` are.
    """
    parts = deque(range(start, min(start + batch_rows, len(rows))) for start in range(0, len(rows), batch_rows))
    crashing: list[int] = []
    while parts:
        for part, scored in _survivors(rows, parts, scorer, guard):
            parts.popleft()
            control = rows.select([part[scored]]) if scored is not None else control
        if parts and len(parts[0]) == 1:
            crashing.append(parts.popleft()[0])
            doubtful = _in_a_row(crashing) % (MOST_IN_A_ROW + 1) == 0 or (control and len(crashing) == len(rows))
            if doubtful and not (control and any(_survivors(control, [range(1)], scorer, guard))):
                raise ScoringError(_at_fault(first + crashing[-_in_a_row(crashing)], first + crashing[-1]))
        elif parts:
            parts.extendleft([range(row, row + 1) for row in reversed(parts.popleft())])
    return crashing


def _survivors(
    rows: Dataset, parts: Sequence[range], scorer: "LarfScorer", guard: "GuardScorer | None"
) -> Iterator[tuple[range, int | None]]:
    """Score parts of the rows in one worker process; ends after the first at which the process dies.

    Yields:
        Each part, and the place in it of the first row with a score.
    """
    try:
        with workers(1, (scorer, guard)) as pool:
            for part in list(parts):
                yield part, pool.submit(_try_rows, rows.select(part)).result()
    except BrokenProcessPool:
        return


def _try_rows(rows: Dataset) -> int | None:
    """Score rows in a worker process, to see whether it survives; returns the place of the first with a score."""
    rank, (scorer, guard) = rank_and_payload()
    batch = text_rows(rows)[:]
    scores = scorer.columns_of(scorer.render(batch, rank), rank)[SCORE]
    if guard:
        guard(batch)
    return next((place for place, score in enumerate(scores) if score is not None), None)


def _in_a_row(crashing: Sequence[int]) -> int:
    """Number of adjacent rows at the end of those that crash."""
    return sum(crashing[-1] - row == place for place, row in enumerate(reversed(crashing)))


def _at_fault(first: int, last: int) -> str:
    """Message about the model or the machine."""
    return (
        f"each of rows {first} to {last} ended the process that scored it, by a crash or for lack of memory, and no "
        "other can be scored: the model or this machine is at fault; try --device cpu, or a machine with more memory"
    )


def with_crashed(columns: Mapping[str, list[Any]], crashed: Collection[int]) -> dict[str, list[Any]]:
    """Add rows that were set aside to the columns of the other rows.

    Args:
        columns: New columns of the rows that were scored.
        crashed: Indices, in the result, of those that were not.

    Returns:
        The same columns, changed in place.
    """
    for index in sorted(crashed):
        for name, values in columns.items():
            values.insert(index, _CELLS.get(name))
    return dict(columns)
