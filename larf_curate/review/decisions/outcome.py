"""A reviewed selection: what is kept, what people removed, and what is withheld until they decide."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, concatenate_datasets

from larf_curate.columns import ROW_ID, content_digest
from larf_curate.conversation.answers import answer, replace_answer
from larf_curate.data.tables import undecoded, write_parquet
from larf_curate.errors import ConversationError, InputError, ReviewError
from larf_curate.files import atomic_path, read_json, write_json
from larf_curate.manifests import DECISIONS, VERSION, check_folder, check_manifest
from larf_curate.review.decisions.merge import Decision
from larf_curate.scoring.selection import Selection

DECISION = "larf_decision"
ORIGINAL = "larf_original_answer"
PARTS = ("kept", "removed", "withheld")
UNFLAGGED = "unflagged"
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
    """Merged decisions by row.

    Args:
        rows: The decisions, one for each row id.
        merge: The rule that merged them.
    """

    rows: tuple[Decision, ...]
    merge: str

    @property
    def counts(self) -> dict[str, int]:
        """Number of rows by decision where decided, else by status."""
        found = Counter(row.decision or "" if row.status == "decided" else row.status for row in self.rows)
        return dict(sorted(found.items()))

    def conflicts(self) -> tuple[Decision, ...]:
        """The rows on which annotators disagree."""
        return tuple(row for row in self.rows if row.status == "conflict")

    def apply(self, selection: "Selection", *, columns: Mapping[str, str] | None = None) -> "Outcome":
        """Split a selection by what people decided.

        Unflagged rows, rows kept and rows edited are kept; rows removed are removed; all other flagged rows are
        withheld: undecided, unsure, in conflict, or changed since they were judged.

        Args:
            selection: The selection whose flagged rows were pushed.
            columns: Column names by role, where the rows' format is not found from the names alone.

        Raises:
            InputError: If people decided about a row that is not flagged, other than to keep it.
            ReviewError: If a row would be lost or doubled.
        """
        return apply_decisions(self, selection, columns=columns)

    def for_rows(self, rows: Iterable[Mapping[str, Any]]) -> "Decisions":
        """The decisions for these rows, in their order; one about another content is stale, a missing one pending.

        Args:
            rows: Rows with ``larf_row_id``.
        """
        known = {row.row_id: row for row in self.rows}
        return Decisions(tuple(_for_row(row, known.get(row[ROW_ID])) for row in rows), self.merge)

    def to_dataset(self) -> Dataset:
        """One row a decision, with types that do not depend on the values."""
        rows = [_to_dict(row) for row in self.rows]
        return Dataset.from_dict({name: [row[name] for row in rows] for name in FEATURES}, features=FEATURES)

    @classmethod
    def load(cls, folder: str | Path) -> "Decisions":
        """Read the decisions out of a folder that `Outcome.save` wrote.

        Raises:
            InputError: If it is not such a folder.
        """
        described = check_manifest(read_json(Path(folder) / DECISIONS.file), DECISIONS, folder)
        rows = pq.read_table(Path(folder) / "decisions.parquet").to_pylist()
        return cls(tuple(_from_dict(row) for row in rows), described["merge"])


def _for_row(row: Mapping[str, Any], known: Decision | None) -> Decision:
    digest = content_digest(row)
    if known is None:
        return Decision(row_id=row[ROW_ID], status="pending", content_digest=digest)
    if known.content_digest == digest or known.status == "pending":
        return known
    return Decision(**asdict(known) | {"status": "stale"})


def _to_dict(row: Decision) -> dict[str, Any]:
    values = asdict(row)
    return {ROW_ID: values.pop("row_id")} | values


def _from_dict(row: Mapping[str, Any]) -> Decision:
    values = dict(row)
    return Decision(row_id=values.pop(ROW_ID), **values | {"annotators": tuple(values["annotators"])})


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A selection after review; each of its rows is in exactly one part.

    Args:
        kept: Unflagged rows and rows that people kept or edited: source columns, ``larf_row_id``, ``larf_score``,
            ``larf_decision`` (``unflagged``, ``keep`` or ``edit``) and ``larf_original_answer`` (of edited rows).
        removed: Rows that people removed, the same columns and ``larf_reason``.
        withheld: Flagged rows without a decision that can be applied, the same columns as removed; ``larf_decision``
            is ``unsure``, ``pending``, ``conflict`` or ``stale``.
        decisions: One decision for each flagged row, in their order.
        selection: The manifest of the selection.
    """

    kept: Dataset
    removed: Dataset
    withheld: Dataset
    decisions: Decisions
    selection: Mapping[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """Rows in each part, edited and unflagged rows among those kept, and withheld rows by their reason."""
        kept, withheld = (Counter(part[DECISION]) for part in (self.kept, self.withheld))
        return {
            **{name: len(getattr(self, name)) for name in PARTS},
            "edited": kept["edit"],
            "unflagged": kept[UNFLAGGED],
            **{name: withheld[name] for name in ("unsure", "pending", "conflict", "stale")},
        }

    def save(self, folder: str | Path) -> None:
        """Write ``kept/``, ``removed/``, ``withheld/`` and ``decisions.parquet``, and last ``decisions.json``.

        Args:
            folder: Where to; an earlier outcome in it is replaced.

        Raises:
            InputError: If the folder holds results of another kind.
        """
        check_folder(folder, DECISIONS)
        folder = Path(folder)
        (folder / DECISIONS.file).unlink(missing_ok=True)
        for name in PARTS:
            for old in (folder / name).glob("*.parquet"):
                old.unlink()
            write_parquet(getattr(self, name), folder / name)
        with atomic_path(folder / "decisions.parquet") as aside:
            self.decisions.to_dataset().to_parquet(aside)
        described = {"kind": DECISIONS.name, "version": VERSION, "merge": self.decisions.merge, "counts": self.counts}
        write_json(folder / DECISIONS.file, described | {"selection": dict(self.selection)})


def apply_decisions(decisions: Decisions, selection: Selection, *, columns: Mapping[str, str] | None = None) -> Outcome:
    """Split a selection by what people decided; see `Decisions.apply`.

    Args:
        decisions: The decisions.
        selection: The selection.
        columns: Column names by role.

    Raises:
        InputError: If people decided about a row that is not flagged, other than to keep it.
        ReviewError: If a row would be lost or doubled.
    """
    _check_flagged(decisions, selection)
    flagged, rows = selection.flagged, undecoded(selection.flagged)
    applied = list(decisions.for_rows(rows).rows)
    edits = _edits(rows, applied, columns)
    applied = [_without_failed_edit(row, edits) for row in applied]
    places: dict[str, list[int]] = {name: [] for name in PARTS}
    for index, row in enumerate(applied):
        places[_part(row)].append(index)
    marked = _marked(flagged, [_mark(row) for row in applied])
    reviewed = _edited(marked.select(places["kept"]), rows.select(places["kept"]), edits)
    unflagged = _marked(selection.kept, [UNFLAGGED] * len(selection.kept))
    outcome = Outcome(
        kept=concatenate_datasets([_columns(unflagged), _columns(reviewed)]),
        removed=_columns(marked.select(places["removed"]), reason=True),
        withheld=_columns(marked.select(places["withheld"]), reason=True),
        decisions=Decisions(tuple(applied), decisions.merge),
        selection=selection.manifest(),
    )
    _check_whole(outcome, selection)
    return outcome


def _check_flagged(decisions: Decisions, selection: Selection) -> None:
    """Refuse to publish, as unflagged, a row that people did not want to keep as it is."""
    told = {row.row_id for row in decisions.rows if row.status == "decided" and row.decision != "keep"}
    if passed := told.intersection(selection.kept.with_format(None)[ROW_ID][:]):
        raise InputError(
            f"people decided against {len(passed)} rows that this selection does not flag, such as {min(passed)}: give "
            "the selection that was pushed last, or the one that review rerank wrote"
        )


def _edits(
    flagged: Dataset, decisions: Sequence[Decision], columns: Mapping[str, str] | None
) -> dict[str, dict[str, Any]]:
    """The edited rows by row id; a row that cannot be edited is left out."""
    edited = {}
    for index, decision in enumerate(decisions):
        if decision.status == "decided" and decision.decision == "edit":
            row = flagged[index]
            try:
                changed = replace_answer(row, decision.corrected_answer or "", columns)
            except ConversationError:
                continue
            edited[decision.row_id] = changed | {ORIGINAL: answer(row, columns)}
    return edited


def _without_failed_edit(row: Decision, edits: Mapping[str, Any]) -> Decision:
    failed = row.status == "decided" and row.decision == "edit" and row.row_id not in edits
    return replace(row, status="conflict") if failed else row


def _part(row: Decision) -> str:
    if row.status != "decided":
        return "withheld"
    return {"keep": "kept", "edit": "kept", "remove": "removed"}.get(row.decision or "", "withheld")


def _mark(row: Decision) -> str:
    return (row.decision or "") if row.status == "decided" else row.status


def _marked(rows: Dataset, marks: list[str]) -> Dataset:
    """Add the column of decisions and an empty one of original answers."""
    text = Value("string")
    if not marks:  # datasets cannot add a column to no rows
        features = Features({**rows.features, DECISION: text, ORIGINAL: text})
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return rows.add_column(DECISION, marks, feature=text).add_column(ORIGINAL, [None] * len(marks), feature=text)


def _edited(marked: Dataset, rows: Dataset, edits: Mapping[str, Mapping[str, Any]]) -> Dataset:
    """Replace the rows that have an edit; types stay.

    Args:
        marked: The rows that are kept, with their decision.
        rows: The same rows without it, media undecoded.
        edits: The edited rows by row id.
    """
    if not edits:
        return marked
    unedited = [{DECISION: decision, ORIGINAL: None} for decision in marked[DECISION]]
    changed = [row | new | dict(edits.get(row[ROW_ID], {})) for row, new in zip(rows, unedited, strict=True)]
    return Dataset.from_list(changed, features=marked.features)


def _columns(rows: Dataset, *, reason: bool = False) -> Dataset:
    """Source columns and the few of ours that a published row keeps."""
    source = [name for name in rows.column_names if not name.startswith("larf_")]
    ours = [ROW_ID, "larf_score", DECISION, ORIGINAL, *(["larf_reason"] if reason else [])]
    return rows.select_columns([*source, *ours])


def _check_whole(outcome: Outcome, selection: Selection) -> None:
    """Refuse an outcome that loses or doubles a row."""
    before = Counter(selection.kept[ROW_ID]) + Counter(selection.flagged[ROW_ID])
    after = sum((Counter(getattr(outcome, name)[ROW_ID]) for name in PARTS), Counter())
    if before != after:
        wrong = sorted((before - after) + (after - before))[:3]
        raise ReviewError(f"the outcome would not hold every row exactly once (rows {wrong}): please report this")
