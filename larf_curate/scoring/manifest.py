"""Manifest of a scored folder, from its shards."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.columns import GUARD, SCORE, scores_digest
from larf_curate.data.sources import Source
from larf_curate.manifests import SCORED, VERSION, ScoredManifest, ShardRecord
from larf_curate.records import seal
from larf_curate.scoring.shard import ShardScorer, shard_file
from larf_curate.version import __version__


def scored_manifest(source: Source, shards: ShardScorer, recorded: Mapping[str, ShardRecord]) -> ScoredManifest:
    """Describe a scored folder.

    Args:
        source: The rows, of which each piece has its shard.
        shards: What scored them.
        recorded: Records of the shards, by file name.
    """
    scorer, guard = shards.scorer, shards.guard
    files = [shard_file(shards.folder, piece) for piece in source.pieces]
    status = Counter(status for path in files for status in statuses(path))
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
    judged = {"guard": {**guard.describe(), "status": guard_statuses(shards.folder)}} if guard else {}
    return cast(ScoredManifest, seal(manifest | judged))


def guard_statuses(folder: str | Path) -> dict[str, int]:
    """Number of rows of a scored folder by the status of ``larf_guard``.

    Args:
        folder: Folder that `score_source` wrote with a guard.
    """
    tables = (pq.read_table(path, columns=[GUARD]) for path in sorted(Path(folder).glob("*.parquet")))
    return dict(sorted(Counter(cell["status"] for table in tables for cell in table[0].to_pylist()).items()))


def statuses(path: Path) -> list[str]:
    """Read the column ``larf_status`` of a shard."""
    values: list[str] = pq.read_table(path, columns=["larf_status"])[0].to_pylist()
    return values


def _scores(path: Path) -> list[pa.Array]:
    """The column ``larf_score`` of a shard, in parts."""
    parts: list[pa.Array] = pq.read_table(path, columns=[SCORE])[0].chunks
    return parts
