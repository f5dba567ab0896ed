"""Rows that end the process that scores them, by a crash of native code or for lack of memory: found and set aside.

A crash leaves no exception, only a dead process: so such rows are found by scoring them in worker processes, first
batch by batch, then the rows of a batch that did not survive one by one.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from datasets import Dataset

from larf_curate.columns import GUARD
from larf_curate.data.tables import text_rows
from larf_curate.errors import ScoringError
from larf_curate.scoring.workers import rank_and_payload, workers

if TYPE_CHECKING:
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.scorer import LarfScorer

CRASHED = "crashed"
"""Value of ``larf_status`` of rows that were set aside."""
MOST_IN_A_ROW = 3
"""Maximum number of adjacent rows that are set aside: more of them mean that the rows are not at fault."""
_CELLS: dict[str, Any] = {"larf_status": CRASHED, GUARD: {"request": None, "answer": None, "status": CRASHED}}
"""Values of a row that was set aside; None in all other columns."""


def crashing_rows(
    rows: Dataset, scorer: "LarfScorer", guard: "GuardScorer | None", *, batch_rows: int, first: int = 0
) -> list[int]:
    """Find the rows that end a worker process which scores them.

    Args:
        rows: The rows; each batch of them is scored once more.
        scorer: The scorer.
        guard: The guard model, if any.
        batch_rows: Number of rows that are scored together while nothing crashes.
        first: Number of the first row in its source, for the error message.

    Returns:
        Indices of the rows, rising; none if all of them can be scored in one worker process.

    Raises:
        ScoringError: If over `MOST_IN_A_ROW` adjacent rows crash, or all rows.
    """
    parts = deque(range(start, min(start + batch_rows, len(rows))) for start in range(0, len(rows), batch_rows))
    crashing: list[int] = []
    while parts:
        for _ in _survivors(rows, parts, scorer, guard):
            parts.popleft()
        if parts and len(parts[0]) == 1:
            crashing.append(parts.popleft()[0])
            _check(crashing, len(rows), first)
        elif parts:
            parts.extendleft([range(row, row + 1) for row in reversed(parts.popleft())])
    return crashing


def _survivors(
    rows: Dataset, parts: Sequence[range], scorer: "LarfScorer", guard: "GuardScorer | None"
) -> Iterator[range]:
    """Score parts of the rows in one worker process; ends after the first at which the process dies."""
    try:
        with workers(1, (scorer, guard)) as pool:
            for part in list(parts):
                pool.submit(_try_rows, rows.select(part)).result()
                yield part
    except BrokenProcessPool:
        return


def _try_rows(rows: Dataset) -> None:
    """Score rows in a worker process, only to see whether it survives."""
    rank, (scorer, guard) = rank_and_payload()
    batch = text_rows(rows)[:]
    scorer.columns_of(scorer.render(batch, rank), rank)
    if guard:
        guard(batch)


def _check(crashing: Sequence[int], rows: int, first: int) -> None:
    """Check that not everything crashes."""
    last = crashing[-MOST_IN_A_ROW - 1 :]
    if len(crashing) == rows or (len(last) > MOST_IN_A_ROW and last[-1] - last[0] == MOST_IN_A_ROW):
        raise ScoringError(
            f"each of rows {first + last[0]} to {first + last[-1]} ended the process that scored it, by a crash or for "
            "lack of memory: the model or this machine is at fault; try --device cpu, or a machine with more memory"
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
