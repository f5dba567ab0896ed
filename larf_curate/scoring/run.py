"""Score a dataset into a folder of Parquet shards; a run can be resumed after any interruption.

Each piece of the source becomes one shard of the result. Shards are written atomically, and the manifest is written
last, when all shards are complete.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from larf_curate.data.sources import Piece, Source
from larf_curate.errors import InputError
from larf_curate.files import cache_home, remove_temporary_files, write_json
from larf_curate.manifests import SCORED, ScoredManifest, ShardRecord, read_manifest
from larf_curate.scoring.earlier_columns import without_earlier_columns
from larf_curate.scoring.journal import read_journal, remove_journal
from larf_curate.scoring.local import score_pieces
from larf_curate.scoring.manifest import scored_manifest
from larf_curate.scoring.plan import start_run
from larf_curate.scoring.shard import ShardScorer, shard_file
from larf_curate.verification import is_unchanged

if TYPE_CHECKING:
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.scorer import LarfScorer  # imports torch, which the command line needs only to score

logger = logging.getLogger(__name__)


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
        out: Folder for one ``<piece>.parquet`` per piece, ``plan.json`` and, at the end, ``manifest.json``.
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
    folder = Path(out)
    with _locked(folder):
        return _score_into(source, ShardScorer(folder=folder, scorer=scorer, guard=guard), resume, num_proc)


def _score_into(source: Source, shards: ShardScorer, resume: bool, num_proc: int) -> ScoredManifest:
    folder, scorer, guard = shards.folder, shards.scorer, shards.guard
    plan = {"source": source.description, "scorer": json.loads(scorer.key), "rows": source.rows}
    was_killed = any(folder.glob(".*.parquet.*.tmp"))
    start_run(folder, plan | ({"guard": guard.describe()} if guard else {}), resume)
    recorded = _recorded_shards(folder)
    source = without_earlier_columns(source, shards.features())
    missing = [piece for piece in source.pieces if not _is_scored(shard_file(folder, piece), piece, recorded)]
    done = source.rows - sum(len(piece.rows) for piece in missing)
    bar = tqdm(total=source.rows, desc="Scoring", unit="row", initial=done)
    with bar, logging_redirect_tqdm(tqdm_class=type(bar)):  # warnings are printed above the bar
        try:
            for rows in score_pieces(missing, shards, num_proc=num_proc, in_workers=was_killed):
                bar.update(rows)
        finally:
            remove_temporary_files(folder)
    source.check_unchanged()
    manifest = scored_manifest(source, shards, recorded | read_journal(folder))
    write_json(folder / SCORED.file, manifest)
    remove_journal(folder)
    return manifest


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


def _recorded_shards(folder: Path) -> dict[str, ShardRecord]:
    """Shards by file name, from the manifest if the run has finished, and from the journal of an unfinished run."""
    finished = read_manifest(folder, SCORED)["shards"] if (folder / SCORED.file).exists() else []
    return {shard["file"]: shard for shard in finished} | read_journal(folder)


def _is_scored(path: Path, piece: Piece, recorded: Mapping[str, ShardRecord]) -> bool:
    """Whether the shard of a piece is there, and is the one that was recorded when it was complete."""
    if not path.exists():
        return False
    shard = recorded.get(path.name)
    is_scored = shard is not None and shard["rows"] == len(piece.rows) and _is_unchanged(path, shard)
    if not is_scored:
        logger.warning("%s is damaged, or of another run: its rows are scored again", path)
    return is_scored


def _is_unchanged(path: Path, shard: ShardRecord) -> bool:
    return is_unchanged(path, shard["sha256"], size=shard.get("bytes"))
