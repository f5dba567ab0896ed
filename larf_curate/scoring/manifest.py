"""Manifest of a scored folder, from its shards."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.columns import GUARD, SCORE, scores_digest
from larf_curate.data.formats import first_line
from larf_curate.data.sources import Piece, Source
from larf_curate.errors import ScoringError
from larf_curate.manifests import SCORED, VERSION, ScoredManifest, ShardRecord
from larf_curate.records import seal
from larf_curate.scoring.completed import Records, completed, read_records
from larf_curate.scoring.run_store import run_folder, store_of
from larf_curate.scoring.shard import ShardScorer, shard_file
from larf_curate.version import __version__

SCORED_STATUSES = ("ok", "truncated")
"""Values of ``larf_status`` of rows with a score."""


def scored_manifest(source: Source, shards: ShardScorer) -> ScoredManifest:
    """Describe a scored folder.

    Args:
        source: The rows, of which each piece has its shard.
        shards: What scored them.

    Raises:
        ScoringError: If a shard is not the one that was recorded when it was complete.
    """
    scorer, guard = shards.scorer, shards.guard
    files = [shard_file(shards.folder, piece) for piece in source.pieces]
    records = read_records(shards.folder)
    scores = [part for column in _read(files, SCORE) for part in column.chunks]
    recorded = [_record(piece, shards.folder, records) for piece in source.pieces]
    manifest = {
        "kind": SCORED.name,
        "version": VERSION,
        "package": f"larf-curate {__version__}",
        "source": {**source.description, "columns": scorer.columns},
        "profile": scorer.profile.summary(),
        "signals": list(scorer.signals),
        "rows": source.rows,
        "status": count_statuses(source, shards.folder),
        "scores": scores_digest(pa.chunked_array(scores, pa.float32())),
        "shards": recorded,
    }
    judged = {"guard": {**guard.describe(), "status": guard_statuses(shards.folder)}} if guard else {}
    return cast(ScoredManifest, seal(manifest | judged))


def _record(piece: Piece, folder: Path, records: Records) -> ShardRecord:
    """Record of a shard that is complete: read again only if processes have scored its rows to different content."""
    path = shard_file(folder, piece)
    fitting = records.get(path.name, ())
    shard = fitting[0] if len(fitting) == 1 else completed(path, len(piece.rows), records)
    if shard is None:
        raise ScoringError(f"{path} was changed while other rows were scored: continue with --resume")
    return shard


def count_statuses(source: Source, folder: Path) -> dict[str, int]:
    """Count rows by ``larf_status``.

    Args:
        source: The rows, of which each piece has its shard.
        folder: Folder of the shards.
    """
    files = [shard_file(folder, piece) for piece in source.pieces]
    count = Counter(status for column in _read(files, "larf_status") for status in column.to_pylist())
    return dict(sorted(count.items()))


def guard_statuses(folder: str | Path) -> dict[str, int]:
    """Number of rows of a scored folder by the status of ``larf_guard``.

    Args:
        folder: Folder that `score_source` wrote with a guard.
    """
    folder = run_folder(folder)
    store = store_of(folder)
    files = sorted(folder / name for name in store.names() if "/" not in name) if store else sorted(folder.iterdir())
    columns = _read([path for path in files if path.suffix == ".parquet"], GUARD)
    return dict(sorted(Counter(cell["status"] for column in columns for cell in column.to_pylist()).items()))


def statuses(path: Path) -> list[str]:
    """Read the column ``larf_status`` of a shard.

    Raises:
        ScoringError: If the shard cannot be read.
    """
    [column] = _read([path], "larf_status")
    values: list[str] = column.to_pylist()
    return values


def _read(files: Sequence[Path], name: str) -> Iterable[pa.ChunkedArray]:
    """A column of each of some shards of a folder."""
    store = store_of(files[0].parent) if files else None
    if store is None:
        return (_column(path, name) for path in files)
    try:
        return store.columns([path.name for path in files], name)
    except (pa.ArrowException, OSError) as error:
        raise ScoringError(f"{first_line(error)}; continue with --resume") from error


def _column(path: Path, name: str) -> pa.ChunkedArray:
    """A column of a shard, which may have been damaged since it was complete, or not have been verified."""
    try:
        return pq.read_table(path, columns=[name])[0]
    except (pa.ArrowException, OSError) as error:
        raise ScoringError(f"cannot read {path}: {first_line(error)}; continue with --resume") from error
