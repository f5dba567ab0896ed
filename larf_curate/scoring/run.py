"""A scoring run: a dataset scored shard by shard into a folder, resumable after any interruption.

Each shard of the source becomes one Parquet file, whole or absent; the manifest is written when all are there.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Audio, Dataset, Features, Image, Video
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from larf_curate.conversation.schemas import to_conversation
from larf_curate.data.sources import Piece, Source
from larf_curate.data.tables import undecoded
from larf_curate.errors import ConversationError, InputError, ScoringError
from larf_curate.files import atomic_path, cache_home, read_json, sha256, write_json
from larf_curate.manifests import PLAN, SCORED, VERSION, ScoredManifest, check_manifest
from larf_curate.scoring.folder import shard_digests
from larf_curate.scoring.workers import rank_and_kept, workers
from larf_curate.version import __version__

if TYPE_CHECKING:
    from larf_curate.conversation.chat_template import Rendered
    from larf_curate.scoring.scorer import LarfScorer  # torch, which reading scored datasets needs not

BATCH_ROWS = 250
Item = TypeVar("Item")
Made = TypeVar("Made")
SCORABLE = ("ok", "truncated")


def score_source(
    source: Source,
    scorer: "LarfScorer",
    out: str | Path,
    *,
    resume: bool = False,
    num_proc: int = 1,
) -> ScoredManifest:
    """Score a dataset piece by piece into a folder.

    A piece is written aside and renamed when it is whole, so that after any interruption ``resume`` scores only what is
    missing: no row is lost or doubled.

    Args:
        source: The rows.
        scorer: What scores them.
        out: Folder for ``<piece>.parquet``, ``plan.json`` and, when all is done, ``manifest.json``.
        resume: Whether to go on in a folder that another run began with the same settings.
        num_proc: Number of processes; each loads the model, on the GPU of its rank where there are several.

    Returns:
        The manifest: kind, source, profile, rows, status counts, shards with digests.

    Raises:
        InputError: If the folder is in use, by another process or for something else, or was begun with other settings.
        ScoringError: If a worker process dies, or the disk is full.
    """
    folder = Path(out)
    with _alone_in(folder):
        return _score_into(folder, source, scorer, resume, num_proc)


def _score_into(folder: Path, source: Source, scorer: "LarfScorer", resume: bool, num_proc: int) -> ScoredManifest:
    _begin(folder, {"source": source.description, "scorer": json.loads(scorer.key), "rows": source.rows}, resume)
    recorded = _recorded(folder)
    todo = [piece for piece in source.pieces if not _is_done(shard_file(folder, piece), piece, recorded)]
    done = source.rows - sum(len(piece.rows) for piece in todo)
    with tqdm(total=source.rows, desc="Scoring", unit="row", initial=done) as bar:
        for rows in _run(todo, scorer, folder, num_proc):
            bar.update(rows)
    manifest = _manifest(source, scorer, folder)
    write_json(folder / SCORED.file, manifest)
    return manifest


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes of this machine out of a folder; the system lets go of the lock however this one ends."""
    name = hashlib.sha256(str(folder.resolve()).encode("utf-8", "surrogateescape")).hexdigest()
    path = cache_home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path, timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another process is scoring into {folder}: wait for it, or name another folder") from error


def first_reasons(source: Source, folder: str | Path, scorer: "LarfScorer", *, most: int = 3) -> list[tuple[int, str]]:
    """Say why rows could not be scored.

    Args:
        source: The rows.
        folder: Where `score_source` wrote them.
        scorer: What scored them.
        most: How many rows to explain.

    Returns:
        Number and reason of the first rows without a score.
    """
    reasons: list[tuple[int, str]] = []
    start = 0
    for piece in source.pieces:
        for index, status in enumerate(_statuses(shard_file(Path(folder), piece))):
            if len(reasons) == most:
                return reasons
            if status not in SCORABLE:
                reasons.append((start + index, _reason(undecoded(piece.rows.select([index]))[0], status, scorer)))
        start += len(piece.rows)
    return reasons


def _reason(row: dict[str, Any], status: str, scorer: "LarfScorer") -> str:
    if status == "non_finite":
        return f"the model's states are not finite in {scorer.profile.source.dtype}: build a profile in another dtype"
    try:
        to_conversation(row, scorer.columns)
    except ConversationError as error:
        return str(error)
    return "the model's chat template refuses the conversation"


def _recorded(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of the shards by file name, if the folder was scored to its end."""
    path = folder / SCORED.file
    return shard_digests(check_manifest(read_json(path), SCORED, folder)) if path.exists() else {}


def _is_done(path: Path, piece: Piece, recorded: Mapping[str, str]) -> bool:
    """Whether a piece is scored: its file is whole, and what the manifest says, if there is one."""
    return _rows_in(path) == len(piece.rows) and recorded.get(path.name) in (None, sha256(path))


def _rows_in(path: Path) -> int | None:
    """Number of rows of a Parquet file; None if it is not there or damaged."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowException):
        return None


def _statuses(path: Path) -> list[str]:
    statuses: list[str] = pq.read_table(path, columns=["larf_status"])[0].to_pylist()
    return statuses


def _begin(folder: Path, plan: dict[str, Any], resume: bool) -> None:
    """Write the plan of a new folder, or check it against the one that was begun."""
    plan = json.loads(json.dumps(plan))
    if not (folder / PLAN).exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty: name another folder")
        write_json(folder / PLAN, plan)
    elif not any(folder.glob("*.parquet")):  # nothing was scored: other settings may be tried
        write_json(folder / PLAN, plan)
    elif not resume and (folder / SCORED.file).exists():
        raise InputError(
            f"{folder} is finished: go on with larf-curate select, check it with --resume, or name another folder"
        )
    elif not resume:
        raise InputError(f"{folder} was begun before: go on with --resume, or name another folder")
    elif changed := _changes(read_json(folder / PLAN), plan):
        raise InputError(f"{folder} was begun with another {', '.join(changed)}: name another folder")
    _sweep(folder)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Which settings of two plans differ."""
    old, new = ({**plan["source"], **plan["scorer"], "rows": plan["rows"]} for plan in (before, now))
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed left half written."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _run(todo: Sequence[Piece], scorer: "LarfScorer", folder: Path, num_proc: int) -> Iterator[int]:
    if num_proc <= 1 or len(todo) <= 1:
        for piece in todo:
            yield from score_shard(piece, scorer, folder)
        return
    try:
        with workers(min(num_proc, len(todo)), scorer) as pool:
            for job in as_completed([pool.submit(_work, piece, folder) for piece in todo]):
                yield job.result()
    except BrokenProcessPool as error:
        raise ScoringError("a worker process was killed, for lack of memory perhaps: go on with --resume") from error
    finally:
        _sweep(folder)


def _work(piece: Piece, folder: Path) -> int:
    rank, scorer = rank_and_kept()
    return sum(score_shard(piece, scorer, folder, rank))


def _manifest(source: Source, scorer: "LarfScorer", folder: Path) -> ScoredManifest:
    files = [shard_file(folder, piece) for piece in source.pieces]
    status = Counter(status for path in files for status in _statuses(path))
    return {
        "kind": SCORED.name,
        "version": VERSION,
        "package": f"larf-curate {__version__}",
        "source": {**source.description, "columns": scorer.columns},
        "profile": scorer.profile.summary(),
        "signals": list(scorer.signals),
        "rows": source.rows,
        "status": dict(sorted(status.items())),
        "shards": [
            {"file": path.name, "rows": len(piece.rows), "sha256": sha256(path)}
            for path, piece in zip(files, source.pieces, strict=True)
        ],
    }


def score_shard(piece: Piece, scorer: "LarfScorer", folder: Path, rank: int | None = None) -> Iterator[int]:
    """Score one piece into ``folder/<name>.parquet``; yields the number of rows after each batch.

    Raises:
        ScoringError: If the file cannot be written.
    """
    features = scorer.features(piece.rows.features)
    path = shard_file(folder, piece)
    ends = range(BATCH_ROWS, len(piece.rows) + BATCH_ROWS, BATCH_ROWS)
    batches = (piece.rows.select(range(end - BATCH_ROWS, min(end, len(piece.rows)))) for end in ends)
    try:
        with atomic_path(path) as aside, pq.ParquetWriter(aside, features.arrow_schema) as writer:
            for table, rendered in _one_ahead(partial(_rendered, scorer, rank), batches):
                writer.write_table(_with_scores(table, scorer.columns_of(rendered, rank), features))
                yield len(table)
    except OSError as error:
        raise ScoringError(f"cannot write {path}: {error}; make room, then go on with --resume") from error


def shard_file(folder: Path, piece: Piece) -> Path:
    """Where a piece is scored into."""
    return folder / f"{piece.name}.parquet"


def _rendered(scorer: "LarfScorer", rank: int | None, batch: Dataset) -> tuple[pa.Table, list["Rendered"]]:
    """A batch's own columns as they are, and its rows made ready for the model."""
    text = [name for name, feature in batch.features.items() if not isinstance(feature, Image | Audio | Video)]
    return batch.with_format("arrow")[:], scorer.render(undecoded(batch.select_columns(text))[:], rank)


def _one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Make something of every item, at least one, beside what is done with the one before.

    The first is made in this thread: what loads with it would else set the number of threads of the other one alone.
    """
    left = iter(items)
    made = make(next(left))
    with ThreadPoolExecutor(1) as thread:
        for item in left:
            upcoming = thread.submit(make, item)
            yield made
            made = upcoming.result()
    yield made


def _with_scores(table: pa.Table, added: Mapping[str, Sequence[Any]], features: Features) -> pa.Table:
    """The batch's own columns, and the scorer's behind them."""
    schema = features.arrow_schema
    own = [name for name in table.column_names if name not in added]
    columns = {name: table[name] for name in own} | {n: _array(v, schema.field(n).type) for n, v in added.items()}
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    return pa.array(list(values), dtype)
