"""Decisions applied to a selection: rows kept, rows removed, and rows withheld because they are undecided."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, concatenate_datasets

from larf_curate.columns import (
    DECISION,
    INDEX,
    PREFIX,
    ROW_ID,
    SCORE,
    STATE,
    UNFLAGGED,
    content_digest,
    source_columns,
)
from larf_curate.conversation.answers import answer, replace_answer
from larf_curate.data.formats import first_line
from larf_curate.data.replacement import replaced_results
from larf_curate.data.tables import from_undecoded, part_files, read_column, undecoded, write_parts
from larf_curate.errors import ConversationError, InputError, ReviewError
from larf_curate.files import atomic_path
from larf_curate.manifests import DECISIONS, VERSION, check_shards, read_manifest, shard_record
from larf_curate.records import write_sealed
from larf_curate.remote import local_copy, naming_urls
from larf_curate.review.decisions.merge import Decision
from larf_curate.review.decisions.replaced import warn_of_lost
from larf_curate.scoring.selection import Selection

logger = logging.getLogger(__name__)
ORIGINAL = "larf_original_answer"
PARTS = ("kept", "removed", "withheld")
REASON = "larf_reason"
STATES_FILE = "states.parquet"
JUDGED = ("keep", "remove", "edit")
"""Decisions that say whether a row is published as it is."""
LEARNED_FROM = (ROW_ID, SCORE, "larf_signals", STATE)
"""Columns of decided rows from which rankings of other datasets are learned."""
FLAGGING = ("larf_flagged", REASON)
"""Columns that no kept row needs: it is not flagged, or people decided to keep it."""
EDIT_ERRORS = (ConversationError, pa.ArrowException, ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""Errors of an edit whose row has no answer, or whose column cannot store the new one."""
FEATURES = Features(
    {
        ROW_ID: Value("string"),
        "decision": Value("string"),
        "status": Value("string"),
        "category": Value("string"),
        "severity": Value("string"),
        "rationale": Value("string"),
        "corrected_answer": Value("string"),
        "annotators": List(Value("string")),
        "drafts": Value("int32"),
        "discards": Value("int32"),
        "content_digest": Value("string"),
        "decided_through": Value("string"),
    }
)


@dataclass(frozen=True)
class Decisions:
    """Merged decisions of a review.

    Args:
        rows: One decision per row id.
        merge: Name of the rule that merged them.
    """

    rows: tuple[Decision, ...]
    merge: str

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by decision if decided, else by status."""
        counts = Counter(row.decision or "" if row.status == "decided" else row.status for row in self.rows)
        return dict(sorted(counts.items()))

    def conflicts(self) -> tuple[Decision, ...]:
        """The rows on which annotators disagree."""
        return tuple(row for row in self.rows if row.status == "conflict")

    def apply(self, selection: "Selection", *, columns: Mapping[str, str] | None = None) -> "Outcome":
        """Split a selection into kept, removed and withheld rows.

        Unflagged rows and flagged rows decided as ``keep`` or ``edit`` are kept, rows decided as ``remove`` are
        removed, and all other flagged rows are withheld: undecided, unsure, in conflict, or changed since they were
        judged.

        Args:
            selection: The selection whose flagged rows were pushed.
            columns: Column names by role; default: those that the selection was scored with, else inferred.

        Raises:
            InputError: If a row that the selection does not flag was decided otherwise than ``keep``.
            ReviewError: If a row would be lost or duplicated.
        """
        return apply_decisions(self, selection, columns=columns)

    def for_rows(self, rows: Iterable[Mapping[str, Any]]) -> "Decisions":
        """The decisions for some rows, in their order.

        A decision on another version of a row's content is stale; a row without a decision is pending.

        Args:
            rows: Rows with ``larf_row_id``, media undecoded.
        """
        decisions = {decision.row_id: decision for decision in self.rows}
        return Decisions(tuple(_decision_for(row, decisions.get(row[ROW_ID])) for row in rows), self.merge)

    def to_dataset(self) -> Dataset:
        """One row per decision; column types do not depend on the values."""
        rows = [_to_dict(row) for row in self.rows]
        return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)

    @classmethod
    @naming_urls()
    def load(cls, folder: str | Path) -> "Decisions":
        """Read the decisions from a folder written by `Outcome.save`, or from its URL.

        Raises:
            InputError: If it is not such a folder, or was changed.
        """
        folder = local_copy(folder)
        manifest = read_manifest(folder, DECISIONS)
        check_shards(folder, manifest["shards"], remedy=DECISIONS.remedy, parts=("", *PARTS))
        rows = pq.read_table(folder / "decisions.parquet").to_pylist()
        return cls(tuple(_from_dict(row) for row in rows), manifest["merge"])


def _decision_for(row: Mapping[str, Any], decision: Decision | None) -> Decision:
    digest = content_digest(row)
    if decision is None:
        return Decision(row_id=row[ROW_ID], status="pending", content_digest=digest)
    if decision.content_digest == digest or decision.status == "pending":
        return decision
    return Decision(**asdict(decision) | {"status": "stale"})


def _to_dict(row: Decision) -> dict[str, Any]:
    values = asdict(row)
    return {ROW_ID: values.pop("row_id")} | values


def _from_dict(row: Mapping[str, Any]) -> Decision:
    values = dict(row)
    return Decision(row_id=values.pop(ROW_ID), **values | {"annotators": tuple(values["annotators"])})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A selection after review; each of its rows is in exactly one of three parts.

    Args:
        kept: Unflagged rows and rows decided as ``keep`` or ``edit``, in the order of the source, with all its columns
            but the stored states, ``larf_decision`` (``unflagged``, ``keep`` or ``edit``) and ``larf_original_answer``
            (null unless edited).
        removed: Rows decided as ``remove``, with the columns of ``kept`` and ``larf_reason``.
        withheld: Flagged rows without an applicable decision, with the columns of ``removed``; ``larf_decision`` is
            ``unsure``, ``pending``, ``conflict`` or ``stale``.
        decisions: One decision per flagged row, in the order of the selection.
        selection: Manifest of the selection.
        states: ``larf_row_id``, scores and ``larf_state`` of the rows that people decided themselves, for the rankings
            of other datasets; None if the rows have no states.
    """

    kept: Dataset
    removed: Dataset
    withheld: Dataset
    decisions: Decisions
    selection: Mapping[str, Any]
    states: Dataset | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows in each part, of kept rows that are edited or unflagged, and of withheld rows by reason."""
        kept, withheld = (Counter(part[DECISION]) for part in (self.kept, self.withheld))
        return {
            **{name: len(getattr(self, name)) for name in PARTS},
            "edited": kept["edit"],
            "unflagged": kept[UNFLAGGED],
            **{name: withheld[name] for name in ("unsure", "pending", "conflict", "stale")},
        }

    def save(self, folder: str | Path) -> None:
        """Write ``kept/``, ``removed/``, ``withheld/`` and Parquet files; ``decisions.json`` is written last.

        The files are ``decisions.parquet`` and, if the rows have states, ``states.parquet``. A warning tells which
        answers an earlier outcome in the folder has and this one has not.

        Args:
            folder: Folder to write, or its URL; an earlier outcome in it is replaced.

        Raises:
            InputError: If the folder has results of another kind, or other Parquet files where these are written.
        """
        warn_of_lost(folder, self.decisions.rows)
        parts = {name: getattr(self, name) for name in PARTS}
        files = {"decisions.parquet": self.decisions.to_dataset()}
        files |= {} if self.states is None else {STATES_FILE: self.states}
        with replaced_results(folder, DECISIONS, [*part_files(parts), *files]) as local:
            shards = write_parts(parts, local)
            for name, rows in files.items():
                with atomic_path(local / name) as aside, aside.open("wb") as file:
                    rows.to_parquet(file)
                shards.append(shard_record(local / name, len(rows), folder=local))
            manifest = {"kind": DECISIONS.name, "version": VERSION, "merge": self.decisions.merge}
            content = {"counts": self.counts, "shards": shards, "selection": dict(self.selection)}
            write_sealed(local / DECISIONS.file, manifest | content)


def apply_decisions(decisions: Decisions, selection: Selection, *, columns: Mapping[str, str] | None = None) -> Outcome:
    """Split a selection by decisions; see `Decisions.apply`.

    Args:
        decisions: The decisions.
        selection: The selection.
        columns: Column names by role; default: those that the selection was scored with, else inferred.

    Raises:
        InputError: If a row that the selection does not flag was decided otherwise than ``keep``.
        ReviewError: If a row would be lost or duplicated.
    """
    _check_flagged(decisions, selection)
    # Media are compared and edited as stored: decoding them takes long, can fail, and re-encoding would change them.
    kept, flagged = (_without_earlier_decisions(part) for part in selection)
    rows = undecoded(flagged)
    applied = list(decisions.for_rows(rows).rows)
    recorded = (selection.scored.get("source") or {}).get("columns")
    edits = _edits(rows, applied, recorded if columns is None else columns)
    applied = [_failed_edit_as_conflict(decision, edits) for decision in applied]
    indices: dict[str, list[int]] = {name: [] for name in PARTS}
    for index, decision in enumerate(applied):
        indices[_part(decision)].append(index)
    labelled = _labelled(flagged, [_label(decision) for decision in applied])
    reviewed = _with_edits(labelled.select(indices["kept"]), rows.select(indices["kept"]), edits)
    unflagged = _labelled(kept, [UNFLAGGED] * len(kept))
    common = _common_columns(unflagged, labelled)
    outcome = Outcome(
        kept=_in_source_order(unflagged.select_columns(common), reviewed.select_columns(common)),
        removed=labelled.select(indices["removed"]).select_columns([*common, REASON]),
        withheld=labelled.select(indices["withheld"]).select_columns([*common, REASON]),
        decisions=Decisions(tuple(applied), decisions.merge),
        selection=selection.manifest(),
        states=_states_of_decided(flagged, applied),
    )
    _check_complete(outcome, selection)
    return outcome


def _without_earlier_decisions(rows: Dataset) -> Dataset:
    """The rows without the columns of an earlier review, of which the rows were published and curated again."""
    return rows.remove_columns([name for name in (DECISION, ORIGINAL) if name in rows.column_names])


def _check_flagged(decisions: Decisions, selection: Selection) -> None:
    """Refuse a selection that would publish, as unflagged, a row that people did not want to keep as it is.

    This happens if rows were added to the queue by re-ranking, and the selection is an earlier one.
    """
    rejected = {row.row_id for row in decisions.rows if row.status == "decided" and row.decision != "keep"}
    if unflagged := rejected.intersection(selection.kept.with_format(None)[ROW_ID][:]):
        raise InputError(
            f"people decided against {len(unflagged)} rows that this selection does not flag, such as "
            f"{min(unflagged)}: give the selection that was pushed last, or the one that review rerank wrote"
        )


def _edits(
    flagged: Dataset, decisions: Sequence[Decision], columns: Mapping[str, str] | None
) -> dict[str, dict[str, Any]]:
    """Edited rows by row id; edits that cannot be applied are reported and omitted."""
    edited = {}
    for index, decision in enumerate(decisions):
        if decision.status == "decided" and decision.decision == "edit":
            try:
                edited[decision.row_id] = _edited(flagged, index, decision.corrected_answer or "", columns)
            except EDIT_ERRORS as error:
                reason = first_line(error)
                logger.warning("the edit of row %s cannot be applied, it is in conflict: %s", decision.row_id, reason)
    return edited


def _edited(flagged: Dataset, index: int, text: str, columns: Mapping[str, str] | None) -> dict[str, Any]:
    """One row with a new answer and the original one; raises one of `EDIT_ERRORS` if it cannot be stored."""
    row = flagged[index]
    changed = replace_answer(row, text, columns)
    original = answer(row, columns)
    [stored] = from_undecoded([changed], flagged.features)
    if answer(stored, columns) != text:
        raise ConversationError("the type of its column cannot store the corrected answer: edit the row by hand")
    return changed | {ORIGINAL: original}


def _failed_edit_as_conflict(decision: Decision, edits: Mapping[str, Any]) -> Decision:
    failed = decision.status == "decided" and decision.decision == "edit" and decision.row_id not in edits
    return replace(decision, status="conflict") if failed else decision


def _part(decision: Decision) -> str:
    if decision.status != "decided":
        return "withheld"
    return {"keep": "kept", "edit": "kept", "remove": "removed"}.get(decision.decision or "", "withheld")


def _label(decision: Decision) -> str:
    """Value of ``larf_decision``."""
    return (decision.decision or "") if decision.status == "decided" else decision.status


def _labelled(rows: Dataset, labels: list[str]) -> Dataset:
    """Add the column ``larf_decision`` with these labels, and an empty column ``larf_original_answer``."""
    text = Value("string")
    if not labels:  # datasets cannot add a column to an empty dataset
        features = Features({**rows.features, DECISION: text, ORIGINAL: text})
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return rows.add_column(DECISION, labels, feature=text).add_column(ORIGINAL, [None] * len(labels), feature=text)


def _with_edits(labelled: Dataset, rows: Dataset, edits: Mapping[str, Mapping[str, Any]]) -> Dataset:
    """Replace the rows that have an edit; column types do not change.

    Args:
        labelled: The kept rows, with their decision.
        rows: The same rows without it, media undecoded.
        edits: Edited rows by row id.
    """
    if not edits:
        return labelled
    added = [{DECISION: decision, ORIGINAL: None} for decision in labelled[DECISION]]
    changed = [row | new | dict(edits.get(row[ROW_ID], {})) for row, new in zip(rows, added, strict=True)]
    return from_undecoded(changed, labelled.features)


def _states_of_decided(flagged: Dataset, decisions: Sequence[Decision]) -> Dataset | None:
    """Scores and states of the rows that people decided themselves, not through a near-duplicate; None without any."""
    if STATE not in flagged.column_names:
        return None
    decided = [
        index
        for index, decision in enumerate(decisions)
        if decision.status == "decided" and decision.decision in JUDGED and not decision.decided_through
    ]
    names = [name for name in LEARNED_FROM if name in flagged.column_names]
    return flagged.select_columns(names).select(decided)


def _common_columns(unflagged: Dataset, flagged: Dataset) -> list[str]:
    """Names of the columns of an outcome: those of the source, and ``larf_*`` columns that both parts have."""
    required = (ROW_ID, SCORE, DECISION, ORIGINAL)
    others = [name for name in unflagged.column_names if name not in (*required, *FLAGGING, STATE)]
    added = [
        name for name in others if name.startswith(PREFIX) and flagged.features.get(name) == unflagged.features[name]
    ]
    return [*source_columns(unflagged.column_names), *required, *added]


def _in_source_order(unflagged: Dataset, reviewed: Dataset) -> Dataset:
    """Kept rows in the order of the source; if the selection does not record it, reviewed ones come last."""
    rows = concatenate_datasets([unflagged, reviewed])
    if not len(reviewed):
        return rows
    if INDEX not in rows.column_names:
        logger.warning(
            "the selection does not record the order of the source (no column %s): the %d rows that people kept come "
            "last; select again to keep the order",
            INDEX,
            len(reviewed),
        )
        return rows
    return rows.select(np.argsort(np.fromiter(read_column(rows, INDEX), np.int64, len(rows)), kind="stable"))


def _check_complete(outcome: Outcome, selection: Selection) -> None:
    """Refuse an outcome that loses or duplicates a row, whatever the cause."""
    before = Counter(selection.kept[ROW_ID]) + Counter(selection.flagged[ROW_ID])
    after = sum((Counter(getattr(outcome, name)[ROW_ID]) for name in PARTS), Counter())
    if before != after:
        wrong = sorted((before - after) + (after - before))[:3]
        raise ReviewError(f"the outcome would not contain every row exactly once (rows {wrong}): please report this")
