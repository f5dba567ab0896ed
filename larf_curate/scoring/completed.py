"""Which pieces of a source have a complete shard already, of this run or of another process."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from larf_curate.files import sha256
from larf_curate.manifests import PLAN, SCORED, Plan, ScoredManifest, ShardRecord, read_manifest, read_plan
from larf_curate.scoring.journal import read_journal
from larf_curate.scoring.run_store import store_of
from larf_curate.verification import is_unchanged

Records = Mapping[str, Sequence[ShardRecord]]
"""Records by file name; several of one shard if processes scored it to different content."""


def read_records(folder: Path) -> Records:
    """Read the records of complete shards: from the manifest if the run has finished, and from the journal.

    Of a run in a store, only shards that are there and complete have a record.

    A manifest of another run, as of a folder that was copied over this one, is not read.
    """
    finished = _finished(folder) if (folder / SCORED.file).exists() else ()
    if store := store_of(folder):
        return {**read_journal(folder), **store.records(sha256(folder / PLAN), finished)}
    records = defaultdict(list, read_journal(folder))
    for shard in finished:
        records[shard["file"]].append(shard)
    return records


def record_in_store(folder: Path, name: str, plan: str) -> ShardRecord | None:
    """Record of a shard of a run in a store if it is there and complete, also if the run has finished meanwhile.

    Args:
        folder: Folder of this machine in which the run works.
        name: Name of the shard.
        plan: Hex SHA-256 of the run's plan.
    """
    store = store_of(folder)
    if store is None:
        return None
    return store.record_of(name, plan, lambda: _finished(folder) if store.fetch_manifest(folder) else ())


def _finished(folder: Path) -> Sequence[ShardRecord]:
    """Records of the manifest in a folder; none if it is of another run."""
    manifest = read_manifest(folder, SCORED)
    return manifest["shards"] if _is_of(manifest, read_plan(folder)) else ()


def _is_of(manifest: ScoredManifest, plan: Plan) -> bool:
    """Whether a manifest describes the run of a plan, by all settings that both have."""
    scorer = plan["scorer"]
    settings = (
        {**plan["source"], "columns": scorer.get("columns")},
        plan["rows"],
        scorer.get("profile"),
        scorer.get("signals"),
        plan.get("guard", {}).get("model"),
    )
    return settings == (
        {"columns": None, **manifest["source"]},
        manifest["rows"],
        manifest["profile"]["digest"],
        manifest["signals"],
        manifest.get("guard", {}).get("model"),
    )


def completed(path: Path, rows: int, records: Records, name: str | None = None) -> ShardRecord | None:
    """Find the record of a shard.

    Args:
        path: The shard.
        rows: Number of rows that it must have.
        records: Records of the run.
        name: Name under which it is recorded; default: that of the file.

    Returns:
        The record of its content; None if there is no such file, or it is a link, damaged or of another run.
    """
    fitting = [shard for shard in records.get(name or path.name, ()) if shard["rows"] == rows]
    if fitting and store_of(path.parent):
        return fitting[0]
    if not fitting or not path.exists() or path.is_symlink():
        return None
    if len(fitting) > 1:  # even if files are not to be verified: only the content tells whose it is
        fitting = _with_digest(path, fitting)
    return next((shard for shard in fitting if is_unchanged(path, shard["sha256"], size=shard.get("bytes"))), None)


def _with_digest(path: Path, records: Collection[ShardRecord]) -> list[ShardRecord]:
    """The records that have the content of a file."""
    try:
        digest = sha256(path)
    except OSError:
        return []
    return [shard for shard in records if shard["sha256"] == digest]
