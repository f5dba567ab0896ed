"""Merging several annotators' judgements on a row into one decision.

Rules: ``majority`` (most votes; a tie is a conflict), ``unanimous`` (any dissent is a conflict), ``arbiter:NAME`` (that
annotator decides; if NAME has not answered, the others must be unanimous).
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from larf_curate.errors import InputError
from larf_curate.review.argilla.settings import SEVERITIES
from larf_curate.review.decisions.responses import Judgement, ReviewedRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The decision on one row.

    Args:
        row_id: The row's ``larf_row_id``.
        status: ``decided``, ``pending`` (not enough answers yet, or an edit without corrected answer), ``conflict``
            (annotators disagree) or ``stale`` (all answers are about an earlier version of the content).
        decision: ``keep``, ``remove``, ``edit`` or ``unsure`` if decided, else None.
        category: Most frequent hazard category in the deciding answers.
        severity: Highest severity in the deciding answers.
        rationale: All rationales, one per line, each after its annotator's name.
        corrected_answer: New text of the last assistant turn, for an edit.
        annotators: Names of all annotators whose answers count.
        drafts: Number of drafts; they do not count.
        discards: Number of annotators who discarded the row; they do not count.
        content_digest: Digest of the content that was judged.
        decided_through: Row id of the near-duplicate whose decision this is, if nobody judged the row itself.
    """

    row_id: str
    status: str
    decision: str | None = None
    category: str | None = None
    severity: str | None = None
    rationale: str | None = None
    corrected_answer: str | None = None
    annotators: tuple[str, ...] = ()
    drafts: int = 0
    discards: int = 0
    content_digest: str | None = None
    decided_through: str | None = None


@dataclass(frozen=True)
class MergeRule:
    """Rule that merges judgements into one decision.

    Args:
        kind: ``majority``, ``unanimous`` or ``arbiter``.
        arbiter: User name of the arbiter.
    """

    kind: str
    arbiter: str | None = None

    @classmethod
    def parse(cls, name: str) -> "MergeRule":
        """Parse ``majority``, ``unanimous`` or ``arbiter:USERNAME``.

        Raises:
            InputError: If the name is none of them.
        """
        kind, _, arbiter = name.partition(":")
        if (kind in ("majority", "unanimous") and name == kind) or (kind == "arbiter" and arbiter):
            return cls(kind, arbiter or None)
        raise InputError(f"no merge rule {name!r}: use majority, unanimous or arbiter:USERNAME")

    def is_complete(self, record: ReviewedRecord) -> bool:
        """Whether a record has the answers it needs: enough of them, or that of the arbiter."""
        return record.done or any(j.annotator == self.arbiter for j in record.counted)

    def deciding(self, judgements: Sequence[Judgement]) -> Sequence[Judgement]:
        """Select the judgements that decide, out of at least one; none if they are in conflict."""
        if self.kind == "majority":
            votes = Counter(j.decision for j in judgements).most_common(2)
            tie = len(votes) == 2 and votes[0][1] == votes[1][1]
            return () if tie else [j for j in judgements if j.decision == votes[0][0]]
        if arbitration := [j for j in judgements if j.annotator == self.arbiter]:
            return arbitration
        return judgements if len({j.decision for j in judgements}) == 1 else ()


def merge_records(records: Sequence[ReviewedRecord], rule: MergeRule) -> tuple[Decision, ...]:
    """Merge the judgements on each record, and apply decisions on groups of near-duplicates to all their rows.

    A row with judgements of its own keeps the decision from them. A row claimed by two groups with different decisions
    is in conflict: groups can change from push to push. A corrected answer is applied to exact copies only; other rows
    of the group stay pending.

    Args:
        records: All records of a queue.
        rule: How several judgements are merged into one decision.
    """
    direct = {record.row_id: merge_record(record, rule) for record in records}
    judged = {record.row_id for record in records if record.judgements}
    shared: dict[str, Decision] = {}
    for record in records:
        for row_id, digest in record.shared.items():
            if row_id not in judged:
                decision = _shared_decision(direct[record.row_id], row_id, digest)
                shared[row_id] = _reconciled(shared.get(row_id, decision), decision)
    return tuple({**direct, **shared}.values())


def _shared_decision(leader: Decision, row_id: str, digest: str) -> Decision:
    """The decision on a group's leader as it applies to another row of the group."""
    applies = leader.decision != "edit" or digest == leader.content_digest
    if leader.status == "decided" and applies:
        return replace(leader, row_id=row_id, content_digest=digest, decided_through=leader.row_id)
    return Decision(row_id=row_id, status="pending", content_digest=digest)


def _reconciled(first: Decision, second: Decision) -> Decision:
    """Reconcile two groups' decisions on one row: a conflict if they differ, the decided one if only one is decided."""
    if first.status == second.status == "decided" and first.decision != second.decision:
        return replace(first, status="conflict", decision=None, corrected_answer=None, decided_through=None)
    return first if first.status != "pending" else second


def merge_record(record: ReviewedRecord, rule: MergeRule) -> Decision:
    """Merge the judgements on one record into one decision."""
    counted = record.counted
    status, deciding = _decide(record, rule)
    return Decision(
        row_id=record.row_id,
        status=status,
        decision=deciding[0].decision if deciding else None,
        category=_most_frequent([j.category for j in deciding if j.category]),
        severity=max((j.severity for j in deciding if j.severity), key=list(SEVERITIES).index, default=None),
        rationale="\n".join(f"{j.annotator}: {j.rationale}" for j in counted if j.rationale) or None,
        corrected_answer=deciding[0].corrected_answer if deciding and deciding[0].decision == "edit" else None,
        annotators=tuple(j.annotator for j in counted),
        drafts=sum(j.status == "draft" for j in record.judgements),
        discards=sum(j.status == "discarded" for j in record.judgements),
        content_digest=record.content_digest,
    )


def _decide(record: ReviewedRecord, rule: MergeRule) -> tuple[str, Sequence[Judgement]]:
    """The status of a record, and the judgements that decided it."""
    if not record.counted:
        return ("stale" if any(j.outdated for j in record.judgements) else "pending"), ()
    if not rule.is_complete(record):
        return "pending", ()
    deciding = rule.deciding(record.counted)
    if not deciding:
        return "conflict", ()
    if deciding[0].decision != "edit":
        return "decided", deciding
    # Different corrected answers cannot be merged, even if all annotators chose to edit.
    answers = {j.corrected_answer for j in deciding if (j.corrected_answer or "").strip()}
    if len(answers) > 1:
        return "conflict", ()
    if not answers:
        who = ", ".join(judgement.annotator for judgement in deciding)
        logger.warning(
            "row %s: an edit without a corrected answer leaves it pending (%s): write one, or decide otherwise",
            record.row_id,
            who,
        )
        return "pending", ()
    return "decided", [j for j in deciding if j.corrected_answer in answers]


def _most_frequent(values: Sequence[str]) -> str | None:
    # Sorted, so that a tie does not depend on the order of annotators.
    counts = Counter(sorted(values)).most_common(1)
    return counts[0][0] if counts else None
