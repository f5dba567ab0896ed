"""Score a dataset into a folder of Parquet shards; a run can be resumed after any interruption.

Each piece of the source becomes one shard of the result. Shards are written atomically, and the manifest is written
last, when all shards are complete.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from filelock import FileLock, Timeout
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from larf_curate.columns import GUARD, SCORE, scores_digest
from larf_curate.data.sources import Piece, Source
from larf_curate.data.tables import text_rows
from larf_curate.errors import InputError, ScoringError
from larf_curate.files import atomic_path, cache_home, remove_temporary_files, sha256, write_json
from larf_curate.manifests import PLAN, SCORED, VERSION, Plan, ScoredManifest, ShardRecord, read_manifest, read_plan
from larf_curate.records import seal, write_sealed
from larf_curate.scoring.crashes import CRASHED, crashing_rows, with_crashed
from larf_curate.scoring.earlier_columns import without_earlier_columns
from larf_curate.scoring.journal import (
    crash_noted,
    has_crashed,
    note_crash,
    read_journal,
    record_shard,
    remove_journal,
)
from larf_curate.scoring.workers import rank_and_payload, workers
from larf_curate.verification import is_unchanged
from larf_curate.version import __version__

if TYPE_CHECKING:
    from larf_curate.conversation.chat_template import Rendered, Renderer
    from larf_curate.scoring.guard import GuardScorer
    from larf_curate.scoring.scorer import LarfScorer  # imports torch, which the command line needs only to score

logger = logging.getLogger(__name__)
BATCH_ROWS = 250
"""Number of rows that are tokenized, scored and written together."""
BATCH_BYTES = 128 * 2**20
"""Approximate size of these rows in memory, of which there are fewer if they are large."""
MOST_SHOWN = 40
"""Maximum number of characters of a setting in an error message."""
SCORED_STATUSES = ("ok", "truncated")
"""Values of ``larf_status`` of rows with a score."""
Item = TypeVar("Item")
Result = TypeVar("Result")
Payload: TypeAlias = tuple["LarfScorer", "GuardScorer | None"]


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
        return _score_into(folder, source, scorer, resume, num_proc, guard)


def _score_into(
    folder: Path,
    source: Source,
    scorer: "LarfScorer",
    resume: bool,
    num_proc: int,
    guard: "GuardScorer | None",
) -> ScoredManifest:
    plan = {"source": source.description, "scorer": json.loads(scorer.key), "rows": source.rows}
    _start_run(folder, plan | ({"guard": guard.describe()} if guard else {}), resume)
    recorded = _recorded_shards(folder)
    source = without_earlier_columns(source, _features(scorer, guard))
    missing = [piece for piece in source.pieces if not _is_scored(shard_file(folder, piece), piece, recorded)]
    done = source.rows - sum(len(piece.rows) for piece in missing)
    bar = tqdm(total=source.rows, desc="Scoring", unit="row", initial=done)
    in_workers = num_proc > 1 or has_crashed(folder)
    with bar, logging_redirect_tqdm(tqdm_class=type(bar)):  # warnings are printed above the bar
        try:
            with nullcontext() if in_workers else crash_noted(folder):
                for rows in _score_pieces(source, missing, (scorer, guard), folder, num_proc, in_workers=in_workers):
                    bar.update(rows)
        finally:
            remove_temporary_files(folder)
    source.check_unchanged()
    manifest = _manifest(source, scorer, folder, recorded | read_journal(folder), guard)
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


def first_reasons(source: Source, folder: str | Path, scorer: "LarfScorer", *, most: int = 3) -> list[tuple[int, str]]:
    """Explain why the first unscored rows have no score.

    Args:
        source: The rows.
        folder: Folder that `score_source` wrote.
        scorer: The scorer.
        most: Maximum number of rows to explain.

    Returns:
        Index and reason of each of these rows.
    """
    unscored = list(islice(_unscored(source, Path(folder)), most))
    if not unscored:
        return []
    render = scorer.renderer()
    return [(index, _reason(row, status, render, scorer.profile.source.dtype)) for index, status, row in unscored]


def _unscored(source: Source, folder: Path) -> Iterator[tuple[int, str, Dataset]]:
    """Index, status and the row itself of each row without a score."""
    for piece in source.pieces:
        for index, status in enumerate(_statuses(shard_file(folder, piece))):
            if status not in SCORED_STATUSES:
                yield piece.first + index, status, text_rows(piece.rows.select([index]))


def _reason(row: Dataset, status: str, render: "Renderer", dtype: str) -> str:
    """Why a row has no score: a shard has only its status, so the row is rendered again."""
    if status == CRASHED:
        return "it ended the process that scored it, by a crash or for lack of memory: shorten it, or leave it out"
    if status == "non_finite":
        return f"the model's states are not finite in {dtype}: build the profile with another dtype"
    [rendered] = render(list(row))
    return rendered.reason or f"it was {status} when it was scored, and can be rendered now: score it again"


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


def _statuses(path: Path) -> list[str]:
    """The column ``larf_status`` of a shard."""
    statuses: list[str] = pq.read_table(path, columns=["larf_status"])[0].to_pylist()
    return statuses


def _scores(path: Path) -> list[pa.Array]:
    """The column ``larf_score`` of a shard, in parts."""
    parts: list[pa.Array] = pq.read_table(path, columns=[SCORE])[0].chunks
    return parts


def _start_run(folder: Path, plan: dict[str, Any], resume: bool) -> None:
    """Write the plan of a new run, or compare it with the plan of the run to resume."""
    plan = json.loads(json.dumps(plan))  # as it will be read back: tuples become lists
    if not (folder / PLAN).exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty: use another folder")
        write_sealed(folder / PLAN, plan)
    elif not any(folder.glob("*.parquet")):  # nothing has been scored yet, so other settings are fine
        write_sealed(folder / PLAN, plan)
    elif not resume and (folder / SCORED.file).exists():
        raise InputError(
            f"{folder} is finished: continue with larf-curate select, check it with --resume, or use another folder"
        )
    elif not resume:
        raise InputError(f"{folder} has an unfinished run: continue it with --resume, or use another folder")
    elif changed := _changed_settings(read_plan(folder), plan):
        raise InputError(f"{folder} was started with {', '.join(changed)}: use the same, or another folder")
    remove_temporary_files(folder)


def _changed_settings(old_plan: Plan, new_plan: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two plans: name, old value and new value."""
    old, new = (
        {**plan["source"], **plan["scorer"], "rows": plan["rows"], "guard": plan.get("guard")}
        for plan in (old_plan, new_plan)
    )
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} {_shown(old.get(name))}, now {_shown(new.get(name))}" for name in names]


def _shown(value: object) -> str:
    """The beginning of a setting, on one line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _score_pieces(
    source: Source,
    pieces: Sequence[Piece],
    payload: Payload,
    folder: Path,
    num_proc: int,
    *,
    in_workers: bool,
) -> Iterator[int]:
    """Score pieces of a source in this process, or with ``in_workers`` in worker processes.

    Rows that end a worker process are set aside.

    Yields:
        Numbers of newly scored rows.

    Raises:
        ScoringError: If a worker process dies, and no single row ends it.
    """
    if not in_workers:
        for piece in pieces:
            yield from score_piece(piece, *payload, folder)
        return
    missing = {piece.name: piece for piece in pieces}
    while missing:
        left = len(missing)
        try:
            for piece in _score_in_workers(list(missing.values()), payload, folder, num_proc):
                del missing[piece.name]
                yield len(piece.rows)
        except BrokenProcessPool as error:
            interrupted = [piece for piece in missing.values() if _is_interrupted(folder, piece)]
            remove_temporary_files(folder)
            note_crash(folder)
            if not interrupted and left == len(missing):
                raise ScoringError(_killed("before it scored a row")) from error
            spans = ", ".join(_span(piece) for piece in interrupted)
            logger.warning("a worker process died, scoring again in a process of their own: rows %s", spans)
            for piece in interrupted:
                scored = (other for other in source.pieces if other.name not in missing)
                _score_alone(piece, payload, folder, scored)
                del missing[piece.name]
                yield len(piece.rows)


def _score_in_workers(
    pieces: Sequence[Piece], payload: Payload, folder: Path, num_proc: int, crashed: Collection[int] = ()
) -> Iterator[Piece]:
    """Score pieces in worker processes; yields each piece when its shard is complete.

    Raises:
        BrokenProcessPool: If one of the processes dies.
    """
    with workers(min(num_proc, len(pieces)), payload) as pool:
        jobs = {pool.submit(_score_in_worker, piece, folder, crashed): piece for piece in pieces}
        for job in as_completed(jobs):
            job.result()
            yield jobs[job]


def _score_alone(piece: Piece, payload: Payload, folder: Path, scored: Iterable[Piece]) -> None:
    """Score one of the pieces at which a worker process died, in a process of its own, without the rows at fault.

    ``scored`` are the pieces that are complete.
    """
    scorer, guard = payload
    try:
        try:
            list(_score_in_workers([piece], payload, folder, 1))
        except BrokenProcessPool:
            logger.warning("it died again: searching for the row at fault among rows %s", _span(piece))
            rows = _scored_rows(scored, folder)
            crashed = crashing_rows(
                piece.rows, scorer, guard, batch_rows=BATCH_ROWS, first=piece.first, control=next(rows, None)
            )
            list(_score_in_workers([piece], payload, folder, 1, crashed))
            for index in crashed:
                logger.warning("row %d ended the process that scored it: set aside as %s", piece.first + index, CRASHED)
    except BrokenProcessPool as error:
        raise ScoringError(_killed(f"while it scored rows {_span(piece)}, of which none alone ends it")) from error


def _scored_rows(pieces: Iterable[Piece], folder: Path) -> Iterator[Dataset]:
    """Each row with a score of complete pieces."""
    for piece in pieces:
        for place, status in enumerate(_statuses(shard_file(folder, piece))):
            if status in SCORED_STATUSES:
                yield piece.rows.select([place])


def _is_interrupted(folder: Path, piece: Piece) -> bool:
    """Whether a killed process has left the incomplete shard of a piece."""
    return any(path.name.startswith(f".{piece.name}.parquet.") for path in folder.glob(".*.tmp"))


def _span(piece: Piece) -> str:
    return f"{piece.first} to {piece.first + len(piece.rows) - 1}"


def _killed(moment: str) -> str:
    """Message about a worker process that died."""
    return (
        f"a worker process was killed, perhaps for lack of memory, {moment}: continue with --resume and a smaller "
        "--num-proc or --batch-tokens"
    )


def _score_in_worker(piece: Piece, folder: Path, crashed: Collection[int]) -> None:
    """Score a piece in a worker process."""
    rank, (scorer, guard) = rank_and_payload()
    for _ in score_piece(piece, scorer, guard, folder, rank, crashed):
        pass


def _features(scorer: "LarfScorer", guard: "GuardScorer | None", existing: Features | None = None) -> Features:
    """Column types of a shard; with ``existing``, including those of the rows."""
    features = scorer.features(existing)
    return features if guard is None else guard.features(features)


def guard_statuses(folder: str | Path) -> dict[str, int]:
    """Number of rows of a scored folder by the status of ``larf_guard``.

    Args:
        folder: Folder that `score_source` wrote with a guard.
    """
    tables = (pq.read_table(path, columns=[GUARD]) for path in sorted(Path(folder).glob("*.parquet")))
    return dict(sorted(Counter(cell["status"] for table in tables for cell in table[0].to_pylist()).items()))


def _manifest(
    source: Source,
    scorer: "LarfScorer",
    folder: Path,
    recorded: Mapping[str, ShardRecord],
    guard: "GuardScorer | None",
) -> ScoredManifest:
    files = [shard_file(folder, piece) for piece in source.pieces]
    status = Counter(status for path in files for status in _statuses(path))
    manifest = {
        "kind": SCORED.name,
        "version": VERSION,
        "package": f"larf-curate {__version__}",
        "source": {**source.description, "columns": scorer.columns},
        "profile": scorer.profile.summary(),
        "signals": list(scorer.signals),
        "rows": source.rows,
        "status": dict(sorted(status.items())),
        "scores": scores_digest(pa.chunked_array([part for path in files for part in _scores(path)], pa.float32())),
        "shards": [recorded[path.name] for path in files],
    }
    judged = {"guard": {**guard.describe(), "status": guard_statuses(folder)}} if guard else {}
    return cast(ScoredManifest, seal(manifest | judged))


def score_piece(
    piece: Piece,
    scorer: "LarfScorer",
    guard: "GuardScorer | None",
    folder: Path,
    rank: int | None = None,
    crashed: Collection[int] = (),
) -> Iterator[int]:
    """Score one piece of the source into one shard, ``folder/<name>.parquet``.

    Args:
        piece: The rows.
        scorer: The scorer.
        guard: A guard model whose verdicts are written too, if any.
        folder: Folder of the result.
        rank: Rank of this worker process, which selects the GPU; default: none.
        crashed: Indices of rows that are not scored, since that ends the process.

    Yields:
        The number of rows of each batch, after it is written.

    Raises:
        ScoringError: If the shard cannot be written.
    """
    features = _features(scorer, guard, piece.rows.features)
    path = shard_file(folder, piece)
    count = _batch_rows(piece.rows)
    batches = (range(start, min(start + count, len(piece.rows))) for start in range(0, len(piece.rows), count))
    render = partial(_rendered, scorer, rank, piece.rows, crashed)
    try:
        with atomic_path(path) as temporary:
            with pq.ParquetWriter(temporary, features.arrow_schema) as writer:
                for table, rows, rendered, missing in _prefetch(render, batches):
                    added = scorer.columns_of(rendered, rank) | (guard(rows) if guard else {})
                    writer.write_table(_with_scores(table, with_crashed(added, missing), features))
                    yield len(table)
            # Before the shard gets its name: so a run that is killed here has no shard without a digest.
            size, digest = temporary.stat().st_size, sha256(temporary)
            record_shard(folder, path.name, rows=len(piece.rows), size=size, digest=digest)
    except OSError as error:
        raise ScoringError(f"cannot write {path}: {error}; free disk space, then continue with --resume") from error


def _batch_rows(rows: Dataset) -> int:
    """Number of rows that are scored together: `BATCH_ROWS`, or fewer if they are large on average."""
    average = rows.data.nbytes / max(rows.data.num_rows, 1)
    return max(1, min(BATCH_ROWS, int(BATCH_BYTES / max(average, 1))))


def shard_file(folder: Path, piece: Piece) -> Path:
    """Path of the shard of a piece."""
    return folder / f"{piece.name}.parquet"


def _rendered(
    scorer: "LarfScorer", rank: int | None, rows: Dataset, crashed: Collection[int], batch: range
) -> tuple[pa.Table, dict[str, list[Any]], list["Rendered"], list[int]]:
    """Read and tokenize a batch of rows.

    Returns:
        Its original columns as an Arrow table; the rows to score as lists, without media, and tokenized; and the places
        in the batch of the rows that are not scored.
    """
    missing = [place for place, row in enumerate(batch) if row in crashed]
    texts = text_rows(rows.select([row for row in batch if row not in crashed] if missing else batch))[:]
    return rows.select(batch).with_format("arrow")[:], texts, scorer.render(texts, rank), missing


def _prefetch(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Map a function over items, at least one, in a background thread that is one item ahead of the caller.

    So the next batch is tokenized while the model scores the current one. The first item is processed in this thread,
    since it loads the model, which sets the number of compute threads only for the thread that loads it.
    """
    remaining = iter(items)
    result = function(next(remaining))
    with ThreadPoolExecutor(1) as thread:
        for item in remaining:
            upcoming = thread.submit(function, item)
            yield result
            result = upcoming.result()
    yield result


def _with_scores(table: pa.Table, added: Mapping[str, Sequence[Any]], features: Features) -> pa.Table:
    """The original columns of a batch, followed by those of the scorer, which replace columns of the same name."""
    schema = features.arrow_schema
    original = [name for name in table.column_names if name not in added]
    columns = {name: table[name] for name in original}
    columns |= {name: pa.array(list(values), schema.field(name).type) for name, values in added.items()}
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)
