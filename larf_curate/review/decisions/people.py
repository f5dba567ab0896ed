"""Rows, answers and agreement of each person."""

from collections.abc import Sequence
from dataclasses import dataclass

from larf_curate.review.decisions.agreement import SharedRows, agreement_with_others
from larf_curate.review.decisions.responses import ReviewedRecord


@dataclass(frozen=True, kw_only=True)
class PersonStatus:
    """Where one person stands.

    Args:
        name: User name.
        assigned: Number of rows assigned to the person.
        left: How many of these the person has still to answer: open, and neither answered nor discarded.
        answered: Number of the person's answers that count, on any row.
        unassigned: How many of these are on rows that are assigned to others; they count all the same.
        conflicts: Number of conflicts sent to the person as the third one.
        conflicts_left: How many of these the person has still to decide.
        agreement: Agreement of the person's decisions with those of the others.
    """

    name: str
    assigned: int
    left: int
    answered: int
    unassigned: int
    conflicts: int
    conflicts_left: int
    agreement: SharedRows


def people_status(records: Sequence[ReviewedRecord]) -> tuple[PersonStatus, ...]:
    """Where each person stands who has rows or has answered, sorted by name.

    Args:
        records: All records of a queue.
    """
    answers = [{j.annotator: j.decision or "" for j in record.counted} for record in records]
    agreements = agreement_with_others(answers)
    names = {name for record in records for name in (*record.assigned, *record.third_persons)}
    none = SharedRows(rows=0, share=None, coefficient=None)
    return tuple(_status(name, records, agreements.get(name, none)) for name in sorted(names | set(agreements)))


def _status(name: str, records: Sequence[ReviewedRecord], agreement: SharedRows) -> PersonStatus:
    assigned = [record for record in records if name in record.assigned]
    conflicts = [record for record in records if name in record.third_persons]
    answered = [record for record in records if any(j.annotator == name for j in record.counted)]
    return PersonStatus(
        name=name,
        assigned=len(assigned),
        left=sum(not record.done and not _has_answered(name, record) for record in assigned),
        answered=len(answered),
        unassigned=sum(bool(r.assigned) and name not in (*r.assigned, *r.third_persons) for r in answered),
        conflicts=len(conflicts),
        conflicts_left=sum(not _has_answered(name, record) for record in conflicts),
        agreement=agreement,
    )


def _has_answered(name: str, record: ReviewedRecord) -> bool:
    """Whether a person has submitted an answer to a record, or discarded it."""
    return any(j.annotator == name and j.status in ("submitted", "discarded") for j in record.judgements)
