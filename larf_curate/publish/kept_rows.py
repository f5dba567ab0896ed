"""The kept rows of a decisions or selection folder, checked for consistency, with the counts that their card states."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.columns import ROW_ID, SCORE, duplicates, ids_digest, scores_digest
from larf_curate.errors import InputError
from larf_curate.files import sha256
from larf_curate.manifests import (
    DECISIONS,
    SELECTION,
    DecisionsManifest,
    Kind,
    SelectionManifest,
    check_shards,
    read_manifest,
    visible_shards,
)

KEEP_DECISIONS = ("keep", "edit")
DECISION_COLUMNS = (ROW_ID, "decision", "status", "category", "annotators")
BATCH_ROWS = 1000
"""Row ids that are read together."""
SPLIT = "train"
"""Split of rows whose source does not name one."""
RECORD_FILES = (DECISIONS.file, "decisions.parquet", SELECTION.file)


_SPLIT_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)
"""Names of splits that `datasets` can load, except that it accepts letters of other scripts."""


@dataclass(frozen=True, kw_only=True)
class KeptRows:
    """The rows to publish, with the record of how they were chosen.

    Args:
        is_reviewed: Whether people decided on the flagged rows.
        manifest: Manifest of the folder; it contains the manifests of the steps before it.
        shards: Parquet files of the kept rows, in row order.
        excluded: Parquet files of all other rows: removed and withheld ones, or those that nobody reviewed.
        counts: Numbers of rows: ``rows`` (in total) are ``unflagged`` and ``flagged``; flagged ones are ``kept``,
            ``edited`` and ``removed`` by people, together ``reviewed``, and ``withheld``, of which nobody decided that;
            ``published`` ones are unflagged, kept and edited. ``unscorable`` ones are among the flagged.
        reviewers: Number of people who decided.
        categories: Number of removed rows by the category that reviewers gave them.
        digests: Hex SHA-256 of the manifest and of the decisions, by file name.
    """

    is_reviewed: bool
    manifest: Mapping[str, Any]
    shards: tuple[Path, ...]
    excluded: tuple[Path, ...]
    counts: dict[str, int]
    reviewers: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def selection(self) -> Mapping[str, Any]:
        """Manifest of the selection."""
        return _dict_at(self.manifest, "selection") if self.is_reviewed else self.manifest

    @property
    def scored(self) -> dict[str, Any]:
        """Manifest of the scored dataset; empty if not recorded."""
        return _dict_at(self.selection, "scored")

    @property
    def split(self) -> str:
        """Name of the split that the rows are from, or ``SPLIT`` if it has none."""
        split = _dict_at(self.scored, "source").get("split")
        return split if isinstance(split, str) and _SPLIT_NAME.fullmatch(split) else SPLIT


def read_kept_rows(folder: Path) -> KeptRows:
    """Read a folder that ``review pull``, ``review import`` or ``select`` wrote, and check its row ids.

    The files must be those that the manifest records. No row may occur twice, in one part of the folder or in two of
    them; together the parts must have as many rows as were selected from, if the manifest records it; and no row may be
    kept that was flagged and not approved. The row ids must be those of the selection in the manifest, and the scores
    those of the scored dataset in it.

    Args:
        folder: A folder with ``decisions.json`` or ``selection.json``; the former takes precedence.

    Returns:
        The kept rows, their manifest and their counts.

    Raises:
        InputError: If the folder is of neither kind, is inconsistent, or has no row to publish.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:  # pyarrow does not open such files
        raise InputError(f"the name {ascii(str(folder))} is not UTF-8: rename it") from error
    try:
        kept_rows = _read_kept_rows(folder)
    except pa.ArrowException as error:  # with --no-verify
        raise InputError(f"cannot read {folder}: {str(error).splitlines()[0]}; write the folder again") from error
    if not kept_rows.counts["published"]:
        raise InputError(
            f"no row of {folder} is left to publish, all were flagged, removed or withheld: review the flagged rows, "
            "or flag fewer"
        )
    return kept_rows


def _read_kept_rows(folder: Path) -> KeptRows:
    if (folder / DECISIONS.file).is_file():
        decisions = read_manifest(folder, DECISIONS)
        check_shards(folder, decisions["shards"], remedy=DECISIONS.remedy, parts=("", "kept", "removed", "withheld"))
        return _read_decisions(folder, decisions)
    if (folder / SELECTION.file).is_file():
        selection = read_manifest(folder, SELECTION)
        check_shards(folder, selection["shards"], remedy=SELECTION.remedy, parts=("kept", "flagged"))
        return _read_selection(folder, selection)
    raise InputError(
        f"wanted a folder with decisions.json or selection.json, got {folder}: pass the folder that "
        "`larf-curate review pull` or `larf-curate select` wrote"
    )


def _read_decisions(folder: Path, manifest: DecisionsManifest) -> KeptRows:
    removed, withheld = (set(_row_ids(folder / name)) for name in ("removed", "withheld"))
    decisions = pq.read_table(_existing(folder / "decisions.parquet"), columns=list(DECISION_COLUMNS)).to_pylist()
    decided = [row for row in decisions if row["status"] == "decided"]
    approved = {row[ROW_ID] for row in decided if row["decision"] in KEEP_DECISIONS}
    not_approved = (row[ROW_ID] for row in decisions if row[ROW_ID] not in approved)
    selection = manifest["selection"]
    selected = _selection_counts(selection)
    _check_kept(folder, excluded={*removed, *withheld, *not_approved})
    rows = _check_parts(folder, ("kept", "removed", "withheld"), selected.get("rows"))
    flagged = {row[ROW_ID] for row in decisions}
    unflagged = (name for name in _row_ids(folder / "kept") if name not in flagged)
    _check_selection(folder, selection, {"kept": unflagged, "flagged": flagged}, DECISIONS)
    _check_scores(folder, selection, ("kept", "removed", "withheld"), DECISIONS)
    edited = {row[ROW_ID] for row in decided if row["decision"] == "edit"}
    return KeptRows(
        is_reviewed=True,
        manifest=manifest,
        shards=_shards(folder / "kept"),
        excluded=(*_shards(folder / "removed"), *_shards(folder / "withheld")),
        counts=_counts(
            rows,
            flagged=len(flagged),
            unscorable=selected.get("unscorable", 0),
            edited=len(edited.intersection(_row_ids(folder / "kept"))),
            removed=len(removed),
            withheld=len(withheld),
        ),
        reviewers=len({name for row in decisions for name in row["annotators"] or ()}),
        categories=dict(Counter(str(row["category"] or "none given") for row in decided if row[ROW_ID] in removed)),
        digests=_digests(folder),
    )


def _read_selection(folder: Path, manifest: SelectionManifest) -> KeptRows:
    flagged = set(_row_ids(folder / "flagged"))
    selected = _selection_counts(manifest)
    _check_kept(folder, excluded=flagged)
    rows = _check_parts(folder, ("kept", "flagged"), selected.get("rows"))
    _check_selection(folder, manifest, {"kept": _row_ids(folder / "kept"), "flagged": flagged}, SELECTION)
    _check_scores(folder, manifest, ("kept", "flagged"), SELECTION)
    # Nobody reviewed: every flagged row is withheld, and only rows that were not flagged are published.
    return KeptRows(
        is_reviewed=False,
        manifest=manifest,
        shards=_shards(folder / "kept"),
        excluded=_shards(folder / "flagged"),
        counts=_counts(rows, flagged=len(flagged), unscorable=selected.get("unscorable", 0), withheld=len(flagged)),
        digests=_digests(folder),
    )


def _counts(
    rows: int, *, flagged: int, unscorable: int, edited: int = 0, removed: int = 0, withheld: int = 0
) -> dict[str, int]:
    """Numbers of rows that add up; see `KeptRows`. A row that reviewers are unsure about is withheld, not reviewed."""
    return {
        "rows": rows,
        "unflagged": rows - flagged,
        "flagged": flagged,
        "unscorable": unscorable,
        "reviewed": flagged - withheld,
        "kept": flagged - withheld - removed - edited,
        "edited": edited,
        "removed": removed,
        "withheld": withheld,
        "published": rows - removed - withheld,
    }


def _dict_at(manifest: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The dict under ``key``; empty if there is none, as when a dataset was scored or selected in memory."""
    value = manifest.get(key)
    return value if isinstance(value, dict) else {}


def _selection_counts(manifest: Mapping[str, Any]) -> dict[str, int]:
    return {key: value for key, value in _dict_at(manifest, "counts").items() if isinstance(value, int)}


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path} does not exist: run the command that wrote the folder again")
    return path


def _shards(folder: Path) -> tuple[Path, ...]:
    return tuple(visible_shards(folder))


def _row_ids(folder: Path) -> Iterator[str]:
    """Read the row ids of a folder of shards, in batches; none if it has no shards."""
    for path in _shards(folder):
        with pq.ParquetFile(path) as shard:
            if ROW_ID not in shard.schema_arrow.names:
                raise InputError(f"{path} has no column {ROW_ID}: write the folder again with `larf-curate select`")
            for batch in shard.iter_batches(BATCH_ROWS, columns=[ROW_ID]):
                yield from batch[ROW_ID].to_pylist()


def _check_kept(folder: Path, *, excluded: set[str]) -> None:
    """Check that no kept row was removed, withheld or left undecided."""
    if wrongly_kept := excluded.intersection(_row_ids(folder / "kept")):
        raise InputError(
            f"{folder}/kept contains {len(wrongly_kept)} rows nobody decided to keep: run `larf-curate review pull` "
            "again"
        )


def _check_parts(folder: Path, parts: Sequence[str], expected: int | None) -> int:
    """Check that the row ids of all parts together are unique and as many as expected; returns their number."""
    # With the count alone, a duplicate could hide a missing row.
    if duplicated := duplicates(chain.from_iterable(_row_ids(folder / part) for part in parts)):
        raise InputError(f"{folder} contains {duplicated} duplicated rows: write the folder again")
    rows: int = sum(pq.read_metadata(path).num_rows for part in parts for path in _shards(folder / part))
    if expected is not None and rows != expected:
        raise InputError(
            f"{folder} holds {rows} of the {expected} rows that were selected from: write the folder again"
        )
    return rows


def _check_selection(
    folder: Path, selection: SelectionManifest, ids: Mapping[str, Iterable[str]], kind: Kind[Any]
) -> None:
    """Check that a selection is that of the rows: that it kept and flagged those with these ids."""
    for part, found in ids.items():
        if ids_digest(found) != selection["ids"][part]:  # type: ignore[literal-required]
            raise InputError(f"{folder / kind.file} is of a selection that {part} other rows: {kind.remedy}")


def _check_scores(folder: Path, selection: SelectionManifest, parts: Sequence[str], kind: Kind[Any]) -> None:
    """Check that the scored dataset of a selection is that of the rows: that it had their scores."""
    paths = [path for part in parts for path in _shards(folder / part)]
    if without := [path for path in paths if SCORE not in pq.read_schema(path).names]:
        raise InputError(f"{without[0]} has no column {SCORE}: {kind.remedy}")
    tables = [pq.read_table(path, columns=[SCORE]) for path in paths]
    scores = pa.concat_tables(tables, promote_options="permissive")[SCORE]
    recorded = selection["scored"].get("scores")
    if recorded and scores_digest(scores) != recorded:
        raise InputError(f"{folder / kind.file} is of rows that were scored otherwise than those in it: {kind.remedy}")


def _digests(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in RECORD_FILES if (folder / name).is_file()}
