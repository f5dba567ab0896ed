"""Load a scored dataset from its folder: Parquet shards and a manifest."""

import glob
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk
from datasets.exceptions import DatasetsError

from larf_curate.columns import SCORE, scores_digest
from larf_curate.conversation.schemas import SEPARATOR
from larf_curate.data.formats import first_line
from larf_curate.data.replacement import replaced_results
from larf_curate.data.tables import no_progress_bars, read_column, shard_names, write_parquet
from larf_curate.errors import InputError
from larf_curate.manifests import PLAN, SCORED, VERSION, ScoredManifest, check_shards, read_manifest, shard_record
from larf_curate.records import seal, write_sealed
from larf_curate.remote import is_url, local_copy, naming_urls
from larf_curate.version import __version__

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile  # imports torch, which takes seconds

DATASET: Final = "dataset_info.json"
"""Name of a file that `datasets.Dataset.save_to_disk` writes."""
SPLITS: Final = "dataset_dict.json"
"""Name of the file that `datasets.DatasetDict.save_to_disk` writes beside the folders of the splits."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """A scored dataset, loaded from its folder.

    Args:
        rows: All rows in order, with the ``larf_*`` columns.
        manifest: What was scored and how; see `larf_curate.manifests.ScoredManifest`.
    """

    rows: Dataset
    manifest: ScoredManifest = field(repr=False)

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
    def of(
        cls,
        rows: Dataset,
        profile: "SafetyProfile",
        *,
        source: str = "",
        columns: Mapping[str, str] | None = None,
    ) -> "Scored":
        """Record which profile scored rows in Python, by `datasets.Dataset.map`, as ``larf-curate score`` records it.

        Args:
            rows: The rows with the columns that `LarfScorer` has added.
            profile: The profile of this scorer.
            source: Description of the source of the rows.
            columns: Column names by role, if the scorer was given any.

        Raises:
            InputError: If the rows lack a column of `LarfScorer`, or have another number of layers than the profile.
        """
        _check_columns(rows, profile)
        manifest = {
            "kind": SCORED.name,
            "version": VERSION,
            "package": f"larf-curate {__version__}",
            "source": {"dataset": source, "columns": dict(columns) if columns else None},
            "profile": profile.summary(),
            "signals": list(rows.features.get("larf_signals") or [profile.signal]),
            "rows": len(rows),
            "status": dict(sorted(Counter(read_column(rows, "larf_status")).items())),
            "scores": scores_digest(rows.select_columns([SCORE]).with_format("arrow")[:][SCORE]),
            "shards": [],
        }
        return cls(rows=rows, manifest=cast(ScoredManifest, seal(manifest)))

    def save(self, folder: str | Path) -> None:
        """Write the rows as Parquet, and ``manifest.json`` last, as ``larf-curate score`` does.

        Raises:
            InputError: If the folder has results of another kind, other Parquet files where these are written, or a run
                of ``larf-curate score``.
        """
        if not is_url(folder) and (Path(folder) / PLAN).exists():
            raise InputError(f"{folder} has a run of larf-curate score: write to another folder")
        with replaced_results(folder, SCORED, shard_names(self.rows)) as local:
            shards = [
                shard_record(path, pq.read_metadata(path).num_rows, folder=local)
                for path in write_parquet(self.rows, local)
            ]
            write_sealed(local / SCORED.file, {**self.manifest, "shards": shards})

    @classmethod
    def open(cls, folder: str | Path, profile: "SafetyProfile | None" = None) -> "Scored":
        """Load a folder of ``larf-curate score``, or rows that were scored in Python and saved with ``save_to_disk``.

        Args:
            folder: The folder.
            profile: The profile that scored the rows, which only a folder of ``larf-curate score`` records.

        Raises:
            InputError: If the folder has neither, several splits, or the second without ``profile``.
        """
        if (Path(folder) / SPLITS).is_file():
            names = ", ".join(sorted(path.name for path in Path(folder).iterdir() if (path / DATASET).is_file()))
            raise InputError(f"{folder} has several splits ({names}): give the folder of one, as {folder}/SPLIT")
        if not (Path(folder) / DATASET).is_file() or (Path(folder) / SCORED.file).exists():
            return cls.load(folder)
        if profile is None:
            raise InputError(f"{folder} does not record which profile scored its rows: name it with --profile")
        try:
            rows = load_from_disk(str(folder))
        except (DatasetsError, pa.ArrowException, OSError, ValueError) as error:
            raise InputError(f"cannot read {folder}: {first_line(error)}; save the dataset again") from error
        # As for files, the name alone: ids of rows must not depend on where a command is run.
        return cls.of(rows, profile, source=Path(folder).resolve().name)

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


def _check_columns(rows: Dataset, profile: "SafetyProfile") -> None:
    """Check that rows have scores, and at as many layers as the profile has."""
    if not {SCORE, "larf_status"} <= set(rows.column_names):
        raise InputError(f"the dataset has no larf_score (columns: {rows.column_names}): score it first")
    column = read_column(rows, "larf_layer_scores") if "larf_layer_scores" in rows.column_names else ()
    layers = next((len(scores) for scores in column if scores), None)
    if layers not in (None, len(profile.layers)):
        raise InputError(
            f"wanted scores at as many layers as the profile has, {len(profile.layers)}, got {layers}: give the "
            "profile that scored these rows"
        )
