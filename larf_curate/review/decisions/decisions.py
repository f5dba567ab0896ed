"""What people decided, and the dataset that follows from it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value

from larf_curate.errors import InputError
from larf_curate.files import read_json
from larf_curate.review.decisions.merge import Decision
from larf_curate.scoring.selection import content_digest

if TYPE_CHECKING:
    from larf_curate.review.decisions.outcome import Outcome
    from larf_curate.scoring.selection import Selection

ROW_ID = "larf_row_id"
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
        from larf_curate.review.decisions.outcome import apply_decisions

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
        described = read_json(Path(folder) / "decisions.json")
        if described.get("kind") != "decisions":
            raise InputError(f"{folder} holds {described.get('kind')!r}, not decisions: give what review pull wrote")
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
