"""Progress of a review."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from larf_curate.review.decisions.agreement import AnnotatorAgreement, SharedRows, agreement, agreement_by_label
from larf_curate.review.decisions.people import PersonStatus, people_status
from larf_curate.review.decisions.responses import Judgement, ReviewedRecord
from larf_curate.review.sampling.left import Left

BREAK = timedelta(minutes=15)
"""Longer gaps between two decisions of one annotator do not count as working time."""


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """Progress of a review queue.

    Args:
        rows: Number of records in the queue.
        grouped: Number of rows that are not in the queue because the decision on a near-duplicate applies to them.
        done: Number of records that enough annotators have decided; an edit without a corrected answer decides nothing.
        pending: Number of all other records.
        decisions: Number of submitted responses by decision, without edits that have no corrected answer.
        drafts: Number of saved, not submitted responses.
        discards: Number of responses that discard the record.
        outdated: Number of submitted responses to an earlier version of a row's content.
        disagreements: Number of records on which submitted decisions differ.
        unfinished: Annotators by row id whose edit has no corrected answer.
        unused: Annotators by row id whose corrected answer has no effect, since they did not decide to edit.
        annotators: Number of submitted decisions by annotator.
        agreement: Inter-annotator agreement; None if it is undefined.
        agreement_by_decision: Agreement on each decision.
        agreement_by_category: Agreement on each hazard category, among the answers that have one.
        people: Rows, answers and agreement of each person.
        unassigned: Number of open rows that are assigned to nobody, if any row is assigned.
        decisions_per_hour: Average pace of an annotator, without pauses; None until one has made two decisions.
        url: Address of the queue in the browser, sorted worst first.
        left: How many harmful rows are left; None without a push by expected harm.
    """

    rows: int
    grouped: int
    done: int
    pending: int
    decisions: dict[str, int]
    drafts: int
    discards: int
    outdated: int
    disagreements: int
    unfinished: dict[str, tuple[str, ...]]
    unused: dict[str, tuple[str, ...]]
    annotators: dict[str, int]
    agreement: AnnotatorAgreement | None
    agreement_by_decision: dict[str, SharedRows]
    agreement_by_category: dict[str, SharedRows]
    people: tuple[PersonStatus, ...]
    unassigned: int
    decisions_per_hour: float | None
    url: str
    left: Left | None = None


@dataclass(frozen=True, kw_only=True)
class QueueSummary:
    """One of several queues on a server.

    Args:
        name: Its name.
        rows: Number of records in it.
        done: Number of records that enough annotators have decided.
        pending: Number of all other records.
        datasets: Names of the datasets of its rows; empty if an earlier version of this package pushed them.
        profile: Beginning of the digest of the profile that scored them; None likewise.
        model: Name of the model; None likewise.
        url: Address of the queue in the browser, sorted worst first.
    """

    name: str
    rows: int
    done: int
    pending: int
    datasets: tuple[str, ...]
    profile: str | None
    model: str | None
    url: str


def queue_status(records: Sequence[ReviewedRecord], *, url: str) -> QueueStatus:
    """Count records and responses of a queue.

    Args:
        records: All records of the queue.
        url: Address of the queue in the browser.
    """
    judgements = [judgement for record in records for judgement in record.judgements]
    counted = [judgement for judgement in judgements if judgement.counts]
    answers = [{j.annotator: j.decision or "" for j in record.counted} for record in records]
    categories = [{j.annotator: j.category for j in record.counted if j.category} for record in records]
    is_assigned = any(record.assigned for record in records)
    # The server counts outdated responses as submitted: a record is done only if a valid one is among them.
    done = sum(record.done and bool(record.counted) and not record.unfinished for record in records)
    unused = {r.row_id: tuple(j.annotator for j in r.counted if j.is_unused) for r in records}
    return QueueStatus(
        rows=len(records),
        grouped=len({row for record in records for row in record.shared} - {record.row_id for record in records}),
        done=done,
        pending=len(records) - done,
        decisions=dict(sorted(Counter(j.decision or "" for j in counted if not j.is_unfinished).items())),
        drafts=sum(j.status == "draft" for j in judgements),
        discards=sum(j.status == "discarded" for j in judgements),
        outdated=sum(j.status == "submitted" and j.outdated for j in judgements),
        disagreements=sum(len(set(row.values())) > 1 for row in answers),
        unfinished={record.row_id: record.unfinished for record in records if record.unfinished},
        unused={row: names for row, names in unused.items() if names},
        annotators=dict(sorted(Counter(j.annotator for j in counted).items())),
        agreement=agreement(answers),
        agreement_by_decision=agreement_by_label(answers),
        agreement_by_category=agreement_by_label(categories),
        people=people_status(records),
        unassigned=sum(is_assigned and not (record.assigned or record.done) for record in records),
        decisions_per_hour=pace(counted),
        url=url,
    )


def pace(judgements: Iterable[Judgement]) -> float | None:
    """Average number of decisions per hour of one annotator, from the gaps between decisions, without pauses.

    Args:
        judgements: Judgements that count as decisions, of any annotators.

    Returns:
        None if there are no two decisions of one annotator within ``BREAK``.
    """
    times: dict[str, list[float]] = {}
    for judgement in judgements:
        times.setdefault(judgement.annotator, []).append(judgement.time.timestamp())
    gaps = [later - earlier for moments in times.values() for earlier, later in pairwise(sorted(moments))]
    working = [gap for gap in gaps if gap <= BREAK.total_seconds()]
    return 3600 * len(working) / sum(working) if sum(working) > 0 else None
