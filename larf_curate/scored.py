"""A scored dataset on disk: one Parquet file a piece, each whole or absent, and a manifest when all are there."""

import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features
from tqdm.auto import tqdm

from larf_curate import __version__
from larf_curate.errors import InputError, ScoringError
from larf_curate.files import read_json, read_parquet, sha256, whole, write_json
from larf_curate.scorer import LarfScorer
from larf_curate.sources import Piece, Source

MANIFEST = "manifest.json"
PLAN = "plan.json"
BATCH_ROWS = 1000


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
    def load(cls, folder: str | Path) -> "Scored":
        """Read a folder that `score_source` wrote.

        Raises:
            InputError: If it is not whole.
        """
        manifest = read_json(Path(folder) / MANIFEST)
        if manifest.get("kind") != "scored":
            raise InputError(f"{folder} holds {manifest.get('kind')!r}, wanted a scored dataset: run larf-curate score")
        return cls(rows=read_parquet(folder), manifest=manifest)


def score_source(
    source: Source,
    scorer: LarfScorer,
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
        InputError: If the folder is in use for something else or was begun with other settings.
        ScoringError: If a worker process dies.
    """
    folder = Path(out)
    _begin(folder, {"source": source.description, "scorer": json.loads(scorer.key), "rows": source.rows}, resume)
    todo = [piece for piece in source.pieces if not (folder / f"{piece.name}.parquet").exists()]
    with tqdm(
        total=source.rows, desc="Scoring", unit="row", initial=source.rows - sum(len(p.rows) for p in todo)
    ) as bar:
        for rows in _run(todo, scorer, folder, num_proc):
            bar.update(rows)
    manifest = _manifest(source, scorer, folder)
    write_json(folder / MANIFEST, manifest)
    return manifest


def score_piece(piece: Piece, scorer: LarfScorer, folder: Path, rank: int | None = None) -> Iterator[int]:
    """Score one piece into ``folder/<name>.parquet``; yields the number of rows after each batch."""
    features = scorer.features(piece.rows.features)
    with whole(folder / f"{piece.name}.parquet") as aside, pq.ParquetWriter(aside, features.arrow_schema) as writer:
        for start in range(0, len(piece.rows), BATCH_ROWS):
            batch = piece.rows.select(range(start, min(start + BATCH_ROWS, len(piece.rows))))
            writer.write_table(_score_table(batch, scorer, features, rank))
            yield len(batch)


def _score_table(batch: Dataset, scorer: LarfScorer, features: Features, rank: int | None) -> pa.Table:
    """The batch's own columns as they are, and the scorer's behind them."""
    table = batch.with_format("arrow")[:]
    schema = features.arrow_schema
    added = scorer(batch.with_format(None)[:], rank)
    own = [name for name in table.column_names if name not in added]
    columns = {name: table[name] for name in own} | {n: _array(v, schema.field(n).type) for n, v in added.items()}
    return pa.table({name: columns[name] for name in schema.names}).cast(schema)


def _array(values: Sequence[Any], dtype: pa.DataType) -> pa.Array:
    return pa.array(list(values), dtype)


def _begin(folder: Path, plan: dict[str, Any], resume: bool) -> None:
    """Write the plan of a new folder, or check it against the one that was begun."""
    if (folder / PLAN).exists():
        if not resume:
            raise InputError(f"{folder} was begun before: go on with --resume, or name another folder")
        if read_json(folder / PLAN) != json.loads(json.dumps(plan)):
            raise InputError(f"{folder} was begun with another dataset, profile or settings: name another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty: name another folder")
    else:
        write_json(folder / PLAN, plan)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink()


def _run(todo: Sequence[Piece], scorer: LarfScorer, folder: Path, num_proc: int) -> Iterator[int]:
    if num_proc <= 1 or len(todo) <= 1:
        for piece in todo:
            yield from score_piece(piece, scorer, folder)
        return
    context = multiprocessing.get_context("spawn")
    ranks = context.Queue()
    for rank in range(num_proc):
        ranks.put(rank)
    with ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start_worker, initargs=(ranks, scorer)) as pool:
        jobs = [pool.submit(_work, piece, folder) for piece in todo]
        try:
            for job in as_completed(jobs):
                yield job.result()
        except BrokenProcessPool as error:
            raise ScoringError(
                "a worker process was killed, for lack of memory perhaps: go on with --resume"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}
"""What a worker process was started with: its rank and its scorer."""


def _start_worker(ranks: Any, scorer: LarfScorer) -> None:  # noqa: ANN401  a queue of multiprocessing
    _worker.update(rank=ranks.get(), scorer=scorer)


def _work(piece: Piece, folder: Path) -> int:
    return sum(score_piece(piece, _worker["scorer"], folder, _worker["rank"]))


def _manifest(source: Source, scorer: LarfScorer, folder: Path) -> dict[str, Any]:
    files = [folder / f"{piece.name}.parquet" for piece in source.pieces]
    counts = [pq.read_metadata(path).num_rows for path in files]
    if sum(counts) != source.rows:
        raise ScoringError(f"{folder} holds {sum(counts)} rows, wanted {source.rows}: score into a new folder")
    status = Counter(s for path in files for s in pq.read_table(path, columns=["larf_status"])[0].to_pylist())
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
            {"file": path.name, "rows": rows, "sha256": sha256(path)} for path, rows in zip(files, counts, strict=True)
        ],
    }
