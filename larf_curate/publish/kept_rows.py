"""What is to be published, read from a folder of decisions or of a selection, with the counts its card will state."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from larf_curate.columns import ROW_ID
from larf_curate.errors import InputError
from larf_curate.files import read_json, sha256
from larf_curate.manifests import DECISIONS, SELECTION, DecisionsManifest, SelectionManifest, check_manifest

KEEPING = ("keep", "edit")
DECISION_COLUMNS = (ROW_ID, "decision", "status", "category", "annotators")
RECORDS = (DECISIONS.file, "decisions.parquet", SELECTION.file)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The kept rows and what is known of them.

    Args:
        reviewed: Whether people decided on the flagged rows.
        record: The folder's own record, with those of the stages before it inside.
        shards: Parquet files of the kept rows, in order.
        counts: Rows by what became of them.
        reviewers: How many people decided.
        categories: Removed rows by the category people gave them.
        digests: SHA-256 of the folder's records.
    """

    reviewed: bool
    record: Mapping[str, Any]
    shards: tuple[Path, ...]
    counts: dict[str, int]
    reviewers: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def selection(self) -> Mapping[str, Any]:
        """The record of the selection."""
        return _mapping(self.record, "selection") if self.reviewed else self.record

    @property
    def scored(self) -> dict[str, Any]:
        """The record of the scored dataset."""
        return _mapping(self.selection, "scored")


def read_source(folder: Path) -> Source:
    """Read a folder that ``review pull`` or ``select`` wrote, and check that no row is in two places or lost.

    Args:
        folder: The folder.

    Returns:
        Its kept rows, records and counts.

    Raises:
        InputError: If it is neither, or does not add up.
    """
    if (folder / DECISIONS.file).is_file():
        source = _read_decisions(folder, check_manifest(read_json(folder / DECISIONS.file), DECISIONS, folder))
    elif (folder / SELECTION.file).is_file():
        source = _read_selection(folder, check_manifest(read_json(folder / SELECTION.file), SELECTION, folder))
    else:
        raise InputError(
            f"wanted a folder with decisions.json or selection.json, got {folder}: give what `larf-curate review pull`"
            " or `larf-curate select` wrote"
        )
    if not source.counts["published"]:
        raise InputError(f"no row of {folder} is left to publish: all were flagged, removed or withheld")
    return source


def _read_decisions(folder: Path, record: DecisionsManifest) -> Source:
    kept, removed, withheld = (_row_ids(folder / name) for name in ("kept", "removed", "withheld"))
    decisions = pq.read_table(_there(folder / "decisions.parquet"), columns=list(DECISION_COLUMNS)).to_pylist()
    decided = [row for row in decisions if row["status"] == "decided"]
    passed = {row[ROW_ID] for row in decided if row["decision"] in KEEPING}
    _check(folder, kept, apart={*removed, *withheld, *(row[ROW_ID] for row in decisions if row[ROW_ID] not in passed)})
    selected = _counts(_mapping(record, "selection"))
    _check_total(folder, len(kept) + len(removed) + len(withheld), selected.get("rows"))
    gone = set(removed)
    return Source(
        reviewed=True,
        record=record,
        shards=_shards(folder / "kept"),
        counts={
            **_from_selection(selected, len(kept) + len(removed) + len(withheld), len(decisions)),
            "reviewed": len(decided),
            "removed": len(removed),
            "edited": len({row[ROW_ID] for row in decided if row["decision"] == "edit"}.intersection(kept)),
            "withheld": len(withheld),
            "published": len(kept),
        },
        reviewers=len({name for row in decisions for name in row["annotators"] or ()}),
        categories=dict(Counter(str(row["category"] or "none given") for row in decided if row[ROW_ID] in gone)),
        digests=_digests(folder),
    )


def _read_selection(folder: Path, record: SelectionManifest) -> Source:
    kept, flagged = _row_ids(folder / "kept"), _row_ids(folder / "flagged")
    _check(folder, kept, apart=set(flagged))
    selected = _counts(record)
    _check_total(folder, len(kept) + len(flagged), selected.get("rows"))
    nobody = {"reviewed": 0, "removed": 0, "edited": 0, "withheld": len(flagged), "published": len(kept)}
    counts = {**_from_selection(selected, len(kept) + len(flagged), len(flagged)), **nobody}
    shards = _shards(folder / "kept")
    return Source(reviewed=False, record=record, shards=shards, counts=counts, digests=_digests(folder))


def _from_selection(counts: dict[str, int], rows: int, flagged: int) -> dict[str, int]:
    return {"rows": rows, "flagged": flagged, "unscorable": counts.get("unscorable", 0)}


def _mapping(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def _counts(selection: Mapping[str, Any]) -> dict[str, int]:
    return {key: value for key, value in _mapping(selection, "counts").items() if isinstance(value, int)}


def _there(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} is not there: run the command that wrote the folder again")
    return path


def _shards(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(folder.glob("*.parquet")))


def _row_ids(folder: Path) -> list[str]:
    """The row ids in a folder of shards; none if there are no shards."""
    ids: list[str] = []
    for path in _shards(folder):
        if ROW_ID not in pq.read_schema(path).names:
            raise InputError(f"{path} has no column {ROW_ID}: write the folder again with `larf-curate select`")
        ids.extend(pq.read_table(path, columns=[ROW_ID])[ROW_ID].to_pylist())
    return ids


def _check(folder: Path, kept: list[str], *, apart: set[str]) -> None:
    """A row must be kept once, and not also be removed, withheld or undecided."""
    if len(set(kept)) < len(kept):
        raise InputError(f"{folder}/kept holds a row twice: write the folder again")
    if both := apart.intersection(kept):
        raise InputError(
            f"{folder}/kept holds {len(both)} rows nobody decided to keep: run `larf-curate review pull` again"
        )


def _check_total(folder: Path, rows: int, wanted: int | None) -> None:
    if wanted is not None and rows != wanted:
        raise InputError(f"{folder} holds {rows} of the {wanted} rows that were selected from: write the folder again")


def _digests(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in RECORDS if (folder / name).is_file()}
