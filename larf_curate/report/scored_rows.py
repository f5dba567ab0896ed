"""The rows of a report, with the manifests of their scoring and selection."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value, concatenate_datasets

from larf_curate.columns import DECISION, SCORE, UNFLAGGED
from larf_curate.data.tables import BATCH_ROWS, read_parquet, written_aside
from larf_curate.errors import InputError
from larf_curate.manifests import DECISIONS, SCORED, SELECTION, ScoredManifest, check_shards, read_manifest
from larf_curate.profile import SafetyProfile
from larf_curate.remote import local_copy
from larf_curate.scoring.folder import DATASET, Scored
from larf_curate.scoring.selection import Selection

REVIEWED_PARTS = ("kept", "removed", "withheld")
"""Folders of the rows of a review."""
STATUS = Features({"larf_status": Value("string"), "larf_flagged": Value("bool")})
"""Columns that the rows of a review no longer have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReviewedRows:
    """What is recorded about a review.

    Args:
        merge: Name of the rule that merged the decisions.
        categories: Number of reviewed rows by category, the most frequent first.
    """

    merge: str
    categories: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportRows:
    """Scored rows and what is recorded about their scoring and selection.

    Args:
        rows: The rows with their ``larf_*`` columns, flagged rows first if there is a selection.
        manifest: Manifest of the scored dataset (``manifest.json``); empty for a dataset in memory.
        rule: The rule of the selection and its value; empty without a selection.
        threshold: The lowest flagged score; None if no row was flagged by its score.
        folder: Name of the folder that the rows were read from; None for a dataset in memory.
        decisions: What is recorded about their review, if they are the rows of one.
    """

    rows: Dataset
    manifest: Mapping[str, Any] = field(default_factory=dict)
    rule: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None
    folder: str | None = None
    decisions: "ReviewedRows | None" = None

    @property
    def scored(self) -> Scored | Dataset:
        """The rows with their manifest, which names the profile that scored them; the rows alone if there is none."""
        return Scored(rows=self.rows, manifest=cast(ScoredManifest, self.manifest)) if self.manifest else self.rows

    @property
    def source_info(self) -> Mapping[str, Any]:
        """Description of the source dataset; empty if unknown."""
        return self.manifest.get("source") or {}

    @property
    def profile(self) -> Mapping[str, Any]:
        """Summary of the safety profile; empty if unknown."""
        return self.manifest.get("profile") or {}

    @property
    def columns(self) -> Mapping[str, str] | None:
        """Column names by role, if the user gave any for scoring."""
        return self.source_info.get("columns") or None


def read_report_rows(
    scored: Dataset | str | Path,
    selection: Selection | str | Path | None = None,
    profile: SafetyProfile | None = None,
) -> ReportRows:
    """Read scored rows from a dataset, a scored folder, a selection folder or a folder of decisions.

    Args:
        scored: A dataset, or a folder with ``manifest.json``, ``selection.json`` or ``decisions.json``, or one that
            ``save_to_disk`` wrote.
        selection: The selection made from those rows; its rows replace those of ``scored``, as they say what is
            flagged.
        profile: The profile that scored the rows, if they record none: of a dataset, or from ``save_to_disk``.

    Returns:
        The rows with the manifest of their scoring and the rule of their selection.

    Raises:
        InputError: If a folder is of no such kind, the selection is of other scored rows, or the rows have no
            ``larf_score`` or ``larf_status``.
    """
    is_dataset = isinstance(scored, Dataset)
    # A selection made in memory has recorded the profile itself, with the name of the source.
    report_rows = (
        _from_dataset(scored, None if selection else profile)
        if is_dataset
        else _from_folder(local_copy(scored), profile)
    )
    if selection is not None:
        folder = None if isinstance(selection, Selection) else local_copy(selection)
        loaded = selection if isinstance(selection, Selection) else Selection.load(selection)
        _check_selection(loaded, report_rows.manifest)
        report_rows = _from_selection(loaded, report_rows.manifest, folder)
    missing = {"larf_score", "larf_status"} - set(report_rows.rows.column_names)
    if missing:
        raise InputError(
            f"not a scored dataset: no column {' or '.join(sorted(missing))}; score it with LarfScorer first"
        )
    return report_rows


def _from_dataset(rows: Dataset, profile: SafetyProfile | None) -> ReportRows:
    return ReportRows(rows=rows, manifest=Scored.of(rows, profile).manifest if profile else {})


def _from_folder(folder: Path, profile: SafetyProfile | None) -> ReportRows:
    if (folder / SELECTION.file).is_file():
        return _from_selection(Selection.load(folder), {}, folder)
    if (folder / DECISIONS.file).is_file():
        return _from_decisions(folder)
    if not any((folder / name).is_file() for name in (SCORED.file, DATASET)):
        raise InputError(
            f"{folder} has neither {SCORED.file} nor {SELECTION.file}: pass the folder that score, select or review "
            "pull wrote"
        )
    scored = Scored.open(folder, profile)
    return ReportRows(rows=scored.rows, manifest=scored.manifest, folder=folder.resolve().name)


def _check_selection(selection: Selection, manifest: Mapping[str, Any]) -> None:
    """Check that a selection is of a scored folder, if both record it."""
    recorded = selection.scored.get("digest"), manifest.get("digest")
    if None not in recorded and recorded[0] != recorded[1]:
        raise InputError("the selection was made from other scored rows: give the folder that it was made from")


def _from_selection(selection: Selection, manifest: Mapping[str, Any], folder: Path | None) -> ReportRows:
    try:
        rows = concatenate_datasets([selection.flagged, selection.kept])
    except ValueError as error:
        reason = str(error).split(". ")[0][:200]
        raise InputError(
            f"the kept and the flagged rows differ in columns or types ({reason}): select again"
        ) from error
    return ReportRows(
        rows=rows,
        manifest=selection.scored or manifest,  # a selection made in memory may have no manifest
        rule=selection.rule,
        threshold=selection.threshold,
        folder=folder.resolve().name if folder else None,
    )


def _from_decisions(folder: Path) -> ReportRows:
    """The rows of a review: flagged are those that the selection had flagged."""
    manifest = read_manifest(folder, DECISIONS)
    check_shards(folder, manifest["shards"], remedy=DECISIONS.remedy, parts=("", *REVIEWED_PARTS))
    parts = [read_parquet(folder / name) for name in REVIEWED_PARTS]
    rows = concatenate_datasets([_with_status(part) for part in parts])
    categories = Counter(filter(None, pq.read_table(folder / "decisions.parquet", columns=["category"])[0].to_pylist()))
    return ReportRows(
        rows=rows,
        manifest=manifest["selection"]["scored"],
        rule=manifest["selection"]["rule"],
        threshold=manifest["selection"]["threshold"],
        folder=folder.resolve().name,
        decisions=ReviewedRows(merge=manifest["merge"], categories=dict(categories.most_common())),
    )


def _with_status(rows: Dataset) -> Dataset:
    """The rows with the columns that a review leaves out, or an earlier version did, as far as they can be told."""
    missing = Features({name: kind for name, kind in STATUS.items() if name not in rows.column_names})

    def added() -> Iterator[pa.Table]:
        for batch in rows.select_columns([SCORE, DECISION]).with_format("arrow").iter(BATCH_ROWS):
            known = np.isfinite(batch[SCORE].cast(pa.float64()).fill_null(np.nan).to_numpy())
            status = ["scored" if score else "without a score" for score in known]
            flagged = [decision != UNFLAGGED for decision in batch[DECISION].to_pylist()]
            table = pa.table([pa.array(status), pa.array(flagged)], schema=STATUS.arrow_schema)
            yield table.select(list(missing)).cast(missing.arrow_schema)

    if not len(rows):
        features = Features({**rows.features, **missing})
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return concatenate_datasets([rows, written_aside(added(), missing)], axis=1)
