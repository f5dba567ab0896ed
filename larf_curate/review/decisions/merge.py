"""Several annotators' judgements on a row, merged into one decision.

Rules: ``majority`` (most votes; a tie is a conflict), ``unanimous`` (one dissent is a conflict), ``arbiter:NAME`` (that
annotator decides; where NAME has not answered, the others must be unanimous).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from larf_curate.errors import InputError
from larf_curate.review.argilla.settings import SEVERITIES
from larf_curate.review.decisions.responses import Judgement, Reviewed


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What was decided for one row.

    Args:
        row_id: The row's ``larf_row_id``.
        status: ``decided``, ``pending`` (not enough answers yet, or an edit without its text), ``conflict``
            (annotators disagree) or ``stale`` (all answers are about an earlier content).
        decision: ``keep``, ``remove``, ``edit`` or ``unsure`` if decided, else None.
        category: Most frequent hazard category among those who decided.
        severity: Most severe one among those who decided.
        rationale: All rationales, each after its annotator's name.
        corrected_answer: New text of the last assistant turn, for an edit.
        annotators: Names of all whose answer counts.
        drafts: How many answers are drafts; they do not count.
        discards: How many annotators discarded the row; they do not count.
        content_digest: Digest of the content that was judged.
        decided_through: Row id of the near-identical row whose decision this is, if nobody judged the row itself.
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
    """How judgements become one decision.

    Args:
        kind: ``majority``, ``unanimous`` or ``arbiter``.
        arbiter: User name of the arbiter.
    """

    kind: str
    arbiter: str | None = None

    @classmethod
    def parse(cls, name: str) -> "MergeRule":
        """Read ``majority``, ``unanimous`` or ``arbiter:USERNAME``.

        Raises:
            InputError: If it is none of them.
        """
        kind, _, arbiter = name.partition(":")
        if (kind in ("majority", "unanimous") and name == kind) or (kind == "arbiter" and arbiter):
            return cls(kind, arbiter or None)
        raise InputError(f"no merge rule {name!r}: use majority, unanimous or arbiter:USERNAME")

    def complete(self, record: Reviewed) -> bool:
        """Whether a record has the answers it needs: enough of them, or the arbiter's."""
        return record.done or any(j.annotator == self.arbiter for j in record.counted)

    def deciding(self, judgements: Sequence[Judgement]) -> Sequence[Judgement]:
        """Pick, out of at least one judgement, those that decide; none of them if they are in conflict."""
        if self.kind == "majority":
            votes = Counter(j.decision for j in judgements).most_common(2)
            tie = len(votes) == 2 and votes[0][1] == votes[1][1]
            return () if tie else [j for j in judgements if j.decision == votes[0][0]]
        if own := [j for j in judgements if j.annotator == self.arbiter]:
            return own
        return judgements if len({j.decision for j in judgements}) == 1 else ()


def merged_all(records: Sequence[Reviewed], rule: MergeRule) -> tuple[Decision, ...]:
    """Merge the judgements on all records, and apply those on a group of near-identical rows to the group.

    A row that somebody judged by itself keeps that judgement. Where two groups claim a row and are decided differently
    it is in conflict. A corrected answer is applied to exact copies only; the others stay pending.

    Args:
        records: The records of a queue.
        rule: How several judgements become one decision.
    """
    own = {record.row_id: merged(record, rule) for record in records}
    judged = {record.row_id for record in records if record.judgements}
    served: dict[str, Decision] = {}
    for record in records:
        for row_id, digest in record.shared.items():
            if row_id not in judged:
                through = _through(own[record.row_id], row_id, digest)
                served[row_id] = _agreed(served.get(row_id, through), through)
    return tuple({**own, **served}.values())


def _through(leader: Decision, row_id: str, digest: str) -> Decision:
    """What the decision on the row that stands for a group means for another row of it."""
    copied = leader.decision != "edit" or digest == leader.content_digest
    if leader.status == "decided" and copied:
        return replace(leader, row_id=row_id, content_digest=digest, decided_through=leader.row_id)
    return Decision(row_id=row_id, status="pending", content_digest=digest)


def _agreed(first: Decision, second: Decision) -> Decision:
    """One of two decisions on a row by groups; a conflict if they differ, the decided one if only one is."""
    if first.status == second.status == "decided" and first.decision != second.decision:
        return replace(first, status="conflict", decision=None, corrected_answer=None, decided_through=None)
    return first if first.status != "pending" else second


def merged(record: Reviewed, rule: MergeRule) -> Decision:
    """Merge the judgements on one record."""
    counted = record.counted
    status, deciding = _decide(record, rule)
    return Decision(
        row_id=record.row_id,
        status=status,
        decision=deciding[0].decision if deciding else None,
        category=_most_frequent([j.category for j in deciding if j.category]),
        severity=max((j.severity for j in deciding if j.severity), key=list(SEVERITIES).index, default=None),
        rationale="\n".join(f"{j.annotator}: {j.rationale}" for j in counted if j.rationale) or None,
        corrected_answer=deciding[0].corrected_answer if deciding else None,
        annotators=tuple(j.annotator for j in counted),
        drafts=sum(j.status == "draft" for j in record.judgements),
        discards=sum(j.status == "discarded" for j in record.judgements),
        content_digest=record.content_digest,
    )


def _decide(record: Reviewed, rule: MergeRule) -> tuple[str, Sequence[Judgement]]:
    """The status, and the judgements that decided."""
    if not record.counted:
        return ("stale" if any(j.outdated for j in record.judgements) else "pending"), ()
    if not rule.complete(record):
        return "pending", ()
    deciding = rule.deciding(record.counted)
    if not deciding:
        return "conflict", ()
    if deciding[0].decision != "edit":
        return "decided", deciding
    answers = {j.corrected_answer for j in deciding if (j.corrected_answer or "").strip()}
    if len(answers) > 1:
        return "conflict", ()
    return ("decided", [j for j in deciding if j.corrected_answer in answers]) if answers else ("pending", ())


def _most_frequent(values: Sequence[str]) -> str | None:
    counts = Counter(sorted(values)).most_common(1)
    return counts[0][0] if counts else None
