"""What a report is about: scored rows and the records that say how they were scored and selected."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, concatenate_datasets

from larf_curate.errors import InputError
from larf_curate.manifests import SCORED, SELECTION, ScoredManifest
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import Selection


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Scored rows with their records.

    Args:
        rows: The rows with their ``larf_*`` columns; flagged ones first when a selection was made.
        manifest: The record of the scoring (``manifest.json``); empty for a dataset from memory.
        rule: The rule of the selection and its value; empty without one.
        threshold: The lowest flagged score, if any.
    """

    rows: Dataset
    manifest: Mapping[str, Any] = field(default_factory=dict)
    rule: Mapping[str, float] = field(default_factory=dict)
    threshold: float | None = None

    @property
    def scored(self) -> Scored | Dataset:
        """The rows with the manifest that says which profile scored them, or alone where there is none."""
        return Scored(rows=self.rows, manifest=cast(ScoredManifest, self.manifest)) if self.manifest else self.rows

    @property
    def record(self) -> Mapping[str, Any]:
        """Where the rows came from, empty if unknown."""
        return self.manifest.get("source") or {}

    @property
    def profile(self) -> Mapping[str, Any]:
        """The summary of the safety profile, empty if unknown."""
        return self.manifest.get("profile") or {}

    @property
    def columns(self) -> Mapping[str, str] | None:
        """The column names by role that the user gave for scoring."""
        return self.record.get("columns") or None


def read_source(scored: Dataset | str | Path, selection: Selection | str | Path | None = None) -> Source:
    """Read scored rows from memory, from a scored folder or from a selection folder.

    Args:
        scored: A dataset, or a folder with ``manifest.json`` or ``selection.json``.
        selection: The selection made from those rows; its rows, which say what is flagged, are then reported.

    Returns:
        The rows with the records of their scoring and selection.

    Raises:
        InputError: If a folder is neither, or the rows have no ``larf_score``.
    """
    source = Source(rows=scored) if isinstance(scored, Dataset) else _from_folder(Path(scored))
    if selection is not None:
        source = _from_selection(
            selection if isinstance(selection, Selection) else Selection.load(selection), source.manifest
        )
    missing = {"larf_score", "larf_status"} - set(source.rows.column_names)
    if missing:
        raise InputError(
            f"not a scored dataset: no column {' or '.join(sorted(missing))}; score it with LarfScorer first"
        )
    return source


def _from_folder(folder: Path) -> Source:
    if (folder / SELECTION.file).is_file():
        return _from_selection(Selection.load(folder), {})
    if not (folder / SCORED.file).is_file():
        raise InputError(
            f"{folder} holds neither {SCORED.file} nor {SELECTION.file}: give the folder that score or select wrote"
        )
    scored = Scored.load(folder)
    return Source(rows=scored.rows, manifest=scored.manifest)


def _from_selection(selection: Selection, manifest: Mapping[str, Any]) -> Source:
    return Source(
        rows=concatenate_datasets([selection.flagged, selection.kept]),
        manifest=selection.scored or manifest,
        rule=selection.rule,
        threshold=selection.threshold,
    )
