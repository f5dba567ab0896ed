"""Score a dataset into a folder of Parquet shards; a run can be resumed after any interruption.

Each piece of the source becomes one shard of the result. Shards are written atomically, by one process or by several
that share the folder, and the manifest is written last, when all shards are complete.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout
from tqdm.contrib.logging import logging_redirect_tqdm

from larf_curate.data.sources import Piece, Source
from larf_curate.errors import InputError
from larf_curate.files import cache_home, remove_temporary_files, write_json
from larf_curate.manifests import SCORED, ScoredManifest
from larf_curate.progress import progress
from larf_curate.remote import naming_urls
from larf_curate.scoring.completed import Records, completed, read_records
from larf_curate.scoring.earlier_columns import without_earlier_columns
from larf_curate.scoring.journal import remove_journal
from larf_curate.scoring.local import score_pieces
from larf_curate.scoring.manifest import count_statuses, scored_manifest
from larf_curate.scoring.plan import join_run, start_run
from larf_curate.scoring.run_store import run_folder, store_of
from larf_curate.scoring.shard import Report, ShardScorer, shard_file

if TYPE_CHECKING:
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.scorer import LarfScorer  # imports torch, which the command line needs only to score

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """Scores pieces of a source, in this process or elsewhere."""

    def __call__(self, source: Source, pieces: Sequence[Piece], shards: ShardScorer, report: Report) -> None:
        """Score pieces.

        Args:
            source: The source.
            pieces: Those of its pieces that have no shard yet.
            shards: Scores each of them.
            report: To be called every few seconds with the number of newly scored rows.
        """


def score_source(
    source: Source,
    scorer: "LarfScorer",
    out: str | Path,
    *,
    resume: bool = False,
    num_proc: int = 1,
    guard: "GuardScorer | None" = None,
) -> ScoredManifest:
    """Score a dataset into a folder: each piece of the source becomes one shard of the result.

    Since shards are written atomically, ``resume`` scores only the missing ones after any interruption, and no row is
    lost or duplicated.

    Args:
        source: The rows.
        scorer: The scorer.
        out: Folder, or its URL, for one ``<piece>.parquet`` per piece, ``plan.json`` and, at the end,
            ``manifest.json``.
        resume: Whether to continue a run with the same settings that was started in this folder.
        num_proc: Number of worker processes; each loads the model, on the GPU of its rank if there are several.
        guard: A guard model whose verdicts are written to ``larf_guard``, as a baseline; default: none.

    Returns:
        The manifest; see `larf_curate.manifests.ScoredManifest`.

    Raises:
        InputError: If another process is scoring into the folder, the folder has other content, the run in it was
            started with other settings, or the rows change while they are scored.
        ConversationError: If the columns have no recognised conversation format.
        ProfileMismatchError: If the model is not the one of the profile.
        ScoringError: If a worker process dies, or a shard cannot be written.
    """
    return run_with(partial(score_pieces, num_proc=num_proc), source, scorer, out, resume=resume, guard=guard)


@naming_urls()
def run_with(
    engine: Engine,
    source: Source,
    scorer: "LarfScorer",
    out: str | Path,
    *,
    resume: bool = False,
    guard: "GuardScorer | None" = None,
) -> ScoredManifest:
    """Score a dataset into a folder as `score_source` does, on any engine.

    Args:
        engine: Scores the pieces that have no complete shard yet.
        source: The rows.
        scorer: The scorer.
        out: Folder of the result, or its URL.
        resume: Whether to continue a run with the same settings that was started in this folder.
        guard: A guard model; see `score_source`.
    """
    folder = run_folder(out)
    with _locked(folder):
        shards = ShardScorer(
            folder=folder, plan=start_run(folder, _plan(source, scorer, guard), resume), scorer=scorer, guard=guard
        )
        source = without_earlier_columns(source, shards.features())
        _score_missing(engine, source, shards)
        remove_temporary_files(folder)  # of killed processes, and of others that are scoring what is complete now
        manifest = scored_manifest(source, shards)
        write_json(folder / SCORED.file, manifest)
        if store := store_of(folder):
            store.finish(folder)
        remove_journal(folder)
    return manifest


@naming_urls()
def score_share(
    source: Source,
    scorer: "LarfScorer",
    out: str | Path,
    *,
    index: int,
    count: int,
    num_proc: int = 1,
    guard: "GuardScorer | None" = None,
) -> dict[str, int]:
    """Score the share of one of several processes, which may run on other machines, at once or not, in any order.

    What is complete is not scored again, so a process that was killed is started again in the same way. When all have
    ended, `score_source` with ``resume`` scores what is missing and writes the manifest. The files are those of a run
    of `score_source` alone, whatever the number of processes.

    Args:
        source: The rows; the same for all processes.
        scorer: The scorer, with the same settings.
        out: Folder of the result, or its URL, which all processes share. Its file system need not have locks.
        index: Number of this process, from 0.
        count: Number of processes.
        num_proc: Number of worker processes of this process; see `score_source`.
        guard: A guard model; see `score_source`.

    Returns:
        Number of the share's rows by ``larf_status``.

    Raises:
        InputError: If the number is out of range, the folder has other content, or the run in it was started with
            other settings; see also `score_source`.
        ConversationError: If the columns have no recognised conversation format.
        ProfileMismatchError: If the model is not the one of the profile.
        ScoringError: If a worker process dies, or a shard cannot be written.
    """
    share, folder = source.share(index, count), run_folder(out)
    plan = join_run(folder, _plan(source, scorer, guard))
    shards = ShardScorer(folder=folder, plan=plan, scorer=scorer, guard=guard)
    if share.pieces:
        share = without_earlier_columns(share, shards.features())
        _score_missing(partial(score_pieces, num_proc=num_proc), share, shards)
    return count_statuses(share, folder)


def _plan(source: Source, scorer: "LarfScorer", guard: "GuardScorer | None") -> dict[str, Any]:
    """Everything that can change the result of a run."""
    plan = {"source": source.description, "scorer": json.loads(scorer.key), "rows": source.rows}
    return plan | ({"guard": guard.describe()} if guard else {})


def _score_missing(engine: Engine, source: Source, shards: ShardScorer) -> None:
    """Score the pieces that have no complete shard yet."""
    records = read_records(shards.folder)
    missing = [piece for piece in source.pieces if not _is_scored(piece, shards.folder, records)]
    done = source.rows - sum(len(piece.rows) for piece in missing)
    bar = progress(total=source.rows, label="Scoring", unit="row", done=done)
    with bar, logging_redirect_tqdm(tqdm_class=type(bar)):  # warnings are printed above the bar
        try:
            engine(source, missing, shards, bar.update)
        finally:
            remove_temporary_files(shards.folder, shards.run)
    source.check_unchanged()


def _is_scored(piece: Piece, folder: Path, records: Records) -> bool:
    """Whether the shard of a piece is there, and has the content that was recorded when it was complete."""
    path = shard_file(folder, piece)
    is_scored = completed(path, len(piece.rows), records) is not None
    if not is_scored and path.exists():
        logger.warning("%s is damaged, or of another run: its rows are scored again", path)
    return is_scored


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes on this machine; the lock is released even if this process is killed."""
    # The lock file is in the cache, since a result folder has only results.
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    path = cache_home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise InputError(
            f"another process is scoring into {folder}: wait until it ends, or use another folder"
        ) from error
