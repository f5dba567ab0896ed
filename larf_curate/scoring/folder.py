"""A scored dataset on disk: one Parquet file a piece, each whole or absent, and a manifest when all are there."""

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset
from datasets.exceptions import DatasetsError
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from larf_curate import __version__
from larf_curate.conversation.schemas import to_conversation
from larf_curate.data.sources import Piece, Source
from larf_curate.errors import ConversationError, InputError, ScoringError
from larf_curate.files import PLAN, cache_home, no_progress_bars, read_json, sha256, undecoded, write_json
from larf_curate.scoring.run import piece_file, score_piece
from larf_curate.scoring.workers import rank_and_kept, workers

if TYPE_CHECKING:
    from larf_curate.scoring.scorer import LarfScorer  # torch, which reading needs not

MANIFEST = "manifest.json"
SCORABLE = ("ok", "truncated")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A scored dataset read back.

    Args:
        rows: All rows in order, with the ``larf_*`` columns.
        manifest: What was scored and how; see `score_source`.
    """

    rows: Dataset
    manifest: dict[str, Any]

    @property
    def source_id(self) -> str:
        """What row ids are made from: the dataset, its configuration, split and revision or files."""
        return json.dumps({k: v for k, v in self.manifest["source"].items() if k != "limit"}, sort_keys=True)

    @classmethod
    def load(cls, folder: str | Path, *, verify: bool = False) -> "Scored":
        """Read a folder that `score_source` wrote.

        Args:
            folder: The folder.
            verify: Whether to read every file to its end and compare its digest with the manifest's.

        Raises:
            InputError: If it is not whole.
        """
        if not (Path(folder) / MANIFEST).exists() and (Path(folder) / PLAN).exists():
            raise InputError(f"{folder} is not scored to its end: go on with larf-curate score --resume")
        manifest = read_json(Path(folder) / MANIFEST)
        if manifest.get("kind") != "scored":
            raise InputError(f"{folder} holds {manifest.get('kind')!r}, wanted a scored dataset: run larf-curate score")
        shards = [Path(folder) / shard["file"] for shard in manifest["shards"]]
        try:
            with no_progress_bars():
                rows = Dataset.from_parquet([glob.escape(str(path)) for path in shards])
        except (DatasetsError, OSError, ValueError) as error:
            raise InputError(f"cannot read {folder}: {error.__cause__ or error}; score again with --resume") from error
        if len(rows) != manifest["rows"]:
            raise InputError(f"{folder} holds {len(rows)} rows, its manifest says {manifest['rows']}: score again")
        changed = [path.name for path in shards if verify and sha256(path) != _recorded(Path(folder))[path.name]]
        if changed:
            raise InputError(f"{folder} was changed since it was scored: {', '.join(changed)}; score with --resume")
        return cls(rows=rows, manifest=manifest)


def score_source(
    source: Source,
    scorer: "LarfScorer",
    out: str | Path,
    *,
    resume: bool = False,
    num_proc: int = 1,
) -> dict[str, Any]:
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


def _score_into(folder: Path, source: Source, scorer: "LarfScorer", resume: bool, num_proc: int) -> dict[str, Any]:
    _begin(folder, {"source": source.description, "scorer": json.loads(scorer.key), "rows": source.rows}, resume)
    recorded = _recorded(folder)
    todo = [piece for piece in source.pieces if not _is_done(piece_file(folder, piece), piece, recorded)]
    done = source.rows - sum(len(piece.rows) for piece in todo)
    with tqdm(total=source.rows, desc="Scoring", unit="row", initial=done) as bar:
        for rows in _run(todo, scorer, folder, num_proc):
            bar.update(rows)
    manifest = _manifest(source, scorer, folder)
    write_json(folder / MANIFEST, manifest)
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
        for index, status in enumerate(_statuses(piece_file(Path(folder), piece))):
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
    """Digests of the files by name, if the folder was scored to its end."""
    shards = read_json(folder / MANIFEST)["shards"] if (folder / MANIFEST).exists() else []
    return {shard["file"]: shard["sha256"] for shard in shards}


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
    elif not resume and (folder / MANIFEST).exists():
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
            yield from score_piece(piece, scorer, folder)
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
    return sum(score_piece(piece, scorer, folder, rank))


def _manifest(source: Source, scorer: "LarfScorer", folder: Path) -> dict[str, Any]:
    files = [piece_file(folder, piece) for piece in source.pieces]
    status = Counter(status for path in files for status in _statuses(path))
    return {
        "kind": "scored",
        "version": 1,
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
