"""Score pieces on this machine: in this process, or in worker processes, of which any may die."""

import logging
import multiprocessing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from datasets import Dataset

from larf_curate.data.sources import Piece, Source
from larf_curate.errors import ScoringError
from larf_curate.files import remove_temporary_files
from larf_curate.scoring.crashes import CRASHED, crashing_rows
from larf_curate.scoring.journal import crash_noted, has_crashed, note_crash
from larf_curate.scoring.manifest import SCORED_STATUSES, statuses
from larf_curate.scoring.shard import BATCH_ROWS, Report, ShardScorer, shard_file
from larf_curate.scoring.workers import rank_and_payload, workers

logger = logging.getLogger(__name__)
PROGRESS_SECONDS = 1.0
"""Time between two looks at what worker processes have scored."""


def score_pieces(
    source: Source, pieces: Sequence[Piece], shards: ShardScorer, report: Report, *, num_proc: int
) -> None:
    """Score pieces of a source: in this process, or in worker processes if there are several or one has died before.

    Args:
        source: The source.
        pieces: Those of its pieces that have no shard yet.
        shards: Scores each of them.
        report: Called every few seconds with the number of newly scored rows.
        num_proc: Number of worker processes.

    Raises:
        ScoringError: If a worker process dies, and no single row ends it.
    """
    if num_proc > 1 or has_crashed(shards.folder):
        score_in_workers(source, pieces, shards, report, num_proc=num_proc)
        return
    with crash_noted(shards.folder, shards.run):
        for piece in pieces:
            shards.score(piece, report)


def score_in_workers(
    source: Source, pieces: Sequence[Piece], shards: ShardScorer, report: Report, *, num_proc: int
) -> None:
    """Score pieces as `score_pieces` does, in worker processes; rows that end one are set aside."""
    missing = {piece.name: piece for piece in pieces}
    while missing:
        left = _rows(missing)
        try:
            _score(missing, shards, report, num_proc)
        except BrokenProcessPool as error:
            interrupted = shards.interrupted(missing.values(), run=shards.run)
            remove_temporary_files(shards.folder, shards.run)
            note_crash(shards.folder, shards.run)
            if not interrupted and left == _rows(missing):
                raise ScoringError(_killed("before it scored a row")) from error
            spans = ", ".join(_span(piece) for piece in interrupted)
            logger.warning("a worker process died, scoring again in a process of their own: rows %s", spans)
            for piece in interrupted:
                scored = (other for other in source.pieces if other.name not in missing)
                _score_alone(piece, shards, scored)
                del missing[piece.name]
                report(len(piece.rows))


def _rows(pieces: Mapping[str, Piece]) -> int:
    return sum(len(piece.rows) for piece in pieces.values())


def _score(
    missing: dict[str, Piece], shards: ShardScorer, report: Report, num_proc: int, crashed: Collection[int] = ()
) -> None:
    """Score pieces in worker processes, and remove each from ``missing`` when its shard is complete.

    Raises:
        BrokenProcessPool: If one of the processes dies; what was reported of pieces that are missing is taken back.
    """
    count = min(num_proc, len(missing))
    # Memory without a lock, which a process that is killed would hold for ever.
    scored = multiprocessing.get_context("spawn").RawArray("q", count)
    reported, total = 0, _rows(missing)
    try:
        with workers(count, (shards, scored)) as pool:
            jobs = {pool.submit(_score_in_worker, piece, crashed): piece for piece in missing.values()}
            while jobs:
                done, _ = wait(jobs, timeout=PROGRESS_SECONDS, return_when=FIRST_COMPLETED)
                newly = sum(scored) - reported
                report(newly)
                reported += newly
                for job in done:
                    job.result()
                    del missing[jobs.pop(job).name]
    except BrokenProcessPool:
        report(total - _rows(missing) - reported)
        raise
    report(total - reported)


def _score_alone(piece: Piece, shards: ShardScorer, scored: Iterable[Piece]) -> None:
    """Score one of the pieces at which a worker process died, in a process of its own, without the rows at fault.

    ``scored`` are the pieces that are complete.
    """
    try:
        try:
            _score({piece.name: piece}, shards, _unreported, 1)
        except BrokenProcessPool:
            logger.warning("it died again: searching for the row at fault among rows %s", _span(piece))
            crashed = crashing_rows(
                piece.rows,
                shards.scorer,
                shards.guard,
                batch_rows=BATCH_ROWS,
                first=piece.first,
                control=next(_scored_rows(scored, shards.folder), None),
            )
            _score({piece.name: piece}, shards, _unreported, 1, crashed)
            for index in crashed:
                logger.warning("row %d ended the process that scored it: set aside as %s", piece.first + index, CRASHED)
    except BrokenProcessPool as error:
        raise ScoringError(_killed(f"while it scored rows {_span(piece)}, of which none alone ends it")) from error


def _scored_rows(pieces: Iterable[Piece], folder: Path) -> Iterator[Dataset]:
    """Each row with a score of complete pieces."""
    for piece in pieces:
        for place, status in enumerate(statuses(shard_file(folder, piece))):
            if status in SCORED_STATUSES:
                yield piece.rows.select([place])


def _unreported(_: int) -> None:
    """Do not count the rows of one piece, which is counted when it is complete."""


def _span(piece: Piece) -> str:
    return f"{piece.first} to {piece.first + len(piece.rows) - 1}"


def _killed(moment: str) -> str:
    """Message about a worker process that died."""
    return (
        f"a worker process was killed, perhaps for lack of memory, {moment}: continue with --resume and a smaller "
        "--num-proc or --batch-tokens"
    )


def _score_in_worker(piece: Piece, crashed: Collection[int]) -> None:
    """Score a piece in a worker process."""
    rank, (shards, scored) = rank_and_payload()

    def report(rows: int) -> None:
        scored[rank] += rows

    shards.score(piece, report, rank=rank, crashed=crashed)
