"""Load a scored dataset from its folder: Parquet shards and a manifest."""

import glob
import json
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from datasets.exceptions import DatasetsError

from larf_curate.conversation.schemas import SEPARATOR
from larf_curate.data.tables import no_progress_bars
from larf_curate.errors import InputError
from larf_curate.manifests import PLAN, SCORED, ScoredManifest, check_shards, read_manifest
from larf_curate.remote import local_copy, naming_urls


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A scored dataset, loaded from its folder.

    Args:
        rows: All rows in order, with the ``larf_*`` columns.
        manifest: What was scored and how; see `larf_curate.manifests.ScoredManifest`.
    """

    rows: Dataset
    manifest: ScoredManifest

    @property
    def source_id(self) -> str:
        """Description of the source, as part of row ids: dataset, configuration, split, and revision or files."""
        # Without the limit, so that a row keeps its id when more rows are scored.
        return json.dumps({k: v for k, v in self.manifest["source"].items() if k != "limit"}, sort_keys=True)

    @property
    def separator(self) -> str | None:
        """Text between instruction and input with which Alpaca and Dolly rows were scored; None for the default."""
        return (self.manifest["source"].get("columns") or {}).get(SEPARATOR)

    @classmethod
    @naming_urls()
    def load(cls, folder: str | Path, *, verify: bool = True) -> "Scored":
        """Load a folder that `larf_curate.scoring.run.score_source` wrote.

        Args:
            folder: The folder, or its URL.
            verify: Whether to compare the digests of the shards with those in the manifest; each version of a file is
                read once.

        Raises:
            InputError: If the folder is incomplete, damaged or, with ``verify``, changed.
        """
        folder = local_copy(folder)
        if not (folder / SCORED.file).exists() and (folder / PLAN).exists():
            raise InputError(f"scoring into {folder} is not finished: continue with larf-curate score --resume")
        manifest = read_manifest(folder, SCORED)
        check_shards(folder, manifest["shards"], remedy="score again with --resume", verify=verify)
        shards = [folder / shard["file"] for shard in manifest["shards"]]
        try:
            with no_progress_bars():
                rows = Dataset.from_parquet([glob.escape(str(path)) for path in shards])
        except (DatasetsError, OSError, ValueError) as error:
            raise InputError(f"cannot read {folder}: {error.__cause__ or error}; score again with --resume") from error
        if len(rows) != manifest["rows"]:
            raise InputError(f"{folder} has {len(rows)} rows, but its manifest has {manifest['rows']}: score again")
        return cls(rows=rows, manifest=manifest)
