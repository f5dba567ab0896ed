"""What a report is about: scored rows and the records that say how they were scored and selected."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset, concatenate_datasets

from larf_curate.errors import InputError
from larf_curate.files import read_json, read_parquet

if TYPE_CHECKING:
    from larf_curate.select import Selection


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Scored rows with their records.

    Args:
        rows: The rows with their ``larf_*`` columns; flagged ones first when a selection was made.
        manifest: The record of the scoring (``manifest.json``); empty for a dataset from memory.
        selection: The record of the selection (``selection.json``): rule, threshold and counts; empty without one.
    """

    rows: Dataset
    manifest: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)

    @property
    def profile(self) -> Mapping[str, Any]:
        """The summary of the safety profile, empty if unknown."""
        return self.manifest.get("profile") or {}

    @property
    def columns(self) -> Mapping[str, str] | None:
        """The column names by role that the user gave for scoring."""
        return (self.manifest.get("source") or {}).get("columns") or None


def read_source(scored: Dataset | str | Path, selection: "Selection | str | Path | None" = None) -> Source:
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
    if isinstance(selection, (str, Path)):
        source = _from_selection_folder(Path(selection))
    elif selection is not None:
        rows = concatenate_datasets([selection.flagged, selection.kept])
        source = Source(rows=rows, manifest=source.manifest, selection=selection.summary())
    missing = {"larf_score", "larf_status"} - set(source.rows.column_names)
    if missing:
        raise InputError(
            f"not a scored dataset: no column {' or '.join(sorted(missing))}; score it with LarfScorer first"
        )
    return source


def _from_folder(folder: Path) -> Source:
    if (folder / "selection.json").is_file():
        return _from_selection_folder(folder)
    if not (folder / "manifest.json").is_file():
        raise InputError(
            f"{folder} holds neither manifest.json nor selection.json: give the folder that score or select wrote"
        )
    return Source(rows=read_parquet(folder), manifest=read_json(folder / "manifest.json"))


def _from_selection_folder(folder: Path) -> Source:
    record = read_json(folder / "selection.json")
    rows = concatenate_datasets([read_parquet(folder / "flagged"), read_parquet(folder / "kept")])
    return Source(rows=rows, manifest=record.get("scored") or {}, selection=record)
