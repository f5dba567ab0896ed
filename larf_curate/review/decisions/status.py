"""How far a review has come."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from larf_curate.review.decisions.agreement import Agreement, agreement
from larf_curate.review.decisions.responses import Judgement, Reviewed

BREAK = timedelta(minutes=15)
"""A longer pause between two decisions of one annotator is not counted as working time."""


@dataclass(frozen=True, kw_only=True)
class QueueStatus:
    """The state of a review queue.

    Args:
        rows: Records in the queue.
        grouped: Rows that are not in it because the decision on a near-identical one serves them.
        done: Records that enough annotators have decided.
        pending: The others.
        decisions: Number of submitted answers by decision.
        drafts: Answers begun and not submitted.
        discards: Answers in which an annotator discarded the record.
        outdated: Submitted answers about an earlier content of the row.
        disagreements: Records on which submitted decisions differ.
        annotators: Number of submitted decisions by annotator.
        agreement: Agreement between annotators, if two have records in common.
        decisions_per_hour: Pace of one annotator at work, pauses left out; None until somebody has made two decisions.
        url: The queue in the browser, worst first.
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
    annotators: dict[str, int]
    agreement: Agreement | None
    decisions_per_hour: float | None
    url: str


def queue_status(records: Sequence[Reviewed], *, url: str) -> QueueStatus:
    """Count what annotators have done.

    Args:
        records: All records of the queue.
        url: The queue in the browser.
    """
    everything = [judgement for record in records for judgement in record.judgements]
    counted = [judgement for judgement in everything if judgement.counts]
    answers = [{j.annotator: j.decision or "" for j in record.counted} for record in records]
    done = sum(record.done and bool(record.counted) for record in records)
    return QueueStatus(
        rows=len(records),
        grouped=len({row for record in records for row in record.shared} - {record.row_id for record in records}),
        done=done,
        pending=len(records) - done,
        decisions=dict(sorted(Counter(j.decision or "" for j in counted).items())),
        drafts=sum(j.status == "draft" for j in everything),
        discards=sum(j.status == "discarded" for j in everything),
        outdated=sum(j.status == "submitted" and j.outdated for j in everything),
        disagreements=sum(len(set(row.values())) > 1 for row in answers),
        annotators=dict(sorted(Counter(j.annotator for j in counted).items())),
        agreement=agreement(answers),
        decisions_per_hour=pace(counted),
        url=url,
    )


def pace(judgements: Iterable[Judgement]) -> float | None:
    """Decisions an hour of one annotator at work: the gaps between decisions, pauses left out."""
    times: dict[str, list[float]] = {}
    for judgement in judgements:
        times.setdefault(judgement.annotator, []).append(judgement.time.timestamp())
    gaps = [later - earlier for moments in times.values() for earlier, later in pairwise(sorted(moments))]
    working = [gap for gap in gaps if gap <= BREAK.total_seconds()]
    return 3600 * len(working) / sum(working) if sum(working) > 0 else None
