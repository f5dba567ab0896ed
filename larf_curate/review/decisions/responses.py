"""Responses of annotators: one judgement per record and annotator."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from larf_curate.review.argilla.marks import terms_of, username_of
from larf_curate.review.argilla.settings import ASSIGNED, THIRD_PERSON
from larf_curate.review.records.record import (
    ANSWER_DIGEST,
    CONTENT_DIGEST,
    DECIDED_TOGETHER,
    OUTDATED_RESPONSES,
    SAMPLING,
    answer_digest,
)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One annotator's response to one record.

    Args:
        annotator: User name.
        status: ``submitted``, ``draft`` or ``discarded``.
        decision: ``keep``, ``remove``, ``edit`` or ``unsure``; None in a draft or discarded response without one.
        category: Hazard category.
        severity: ``low``, ``medium`` or ``high``.
        rationale: Free text.
        corrected_answer: New text of the last assistant turn; None if it is the old one, from which an edit starts.
        time: Time of the last change.
        outdated: Whether it was given to an earlier version of the row's content.
    """

    annotator: str
    status: str
    decision: str | None
    category: str | None
    severity: str | None
    rationale: str | None
    corrected_answer: str | None
    time: datetime
    outdated: bool

    @property
    def counts(self) -> bool:
        """Whether it is a valid decision: submitted, and given to the current content of the row."""
        return self.status == "submitted" and self.decision is not None and not self.outdated

    @property
    def is_unfinished(self) -> bool:
        """Whether it is an edit without a corrected answer, which decides nothing."""
        return self.counts and self.decision == "edit" and not self._has_correction

    @property
    def is_unused(self) -> bool:
        """Whether it has a corrected answer that has no effect, since the decision is not to edit."""
        return self.counts and self.decision != "edit" and self._has_correction

    @property
    def _has_correction(self) -> bool:
        return bool((self.corrected_answer or "").strip())

    @property
    def is_empty_draft(self) -> bool:
        """Whether it is a draft without any answer."""
        given = (self.decision, self.category, self.severity, self.rationale, self.corrected_answer)
        return self.status == "draft" and not any(given)


@dataclass(frozen=True, kw_only=True)
class ReviewedRecord:
    """A record with its judgements.

    Args:
        row_id: The row's ``larf_row_id``.
        content_digest: Digest of the row's content as pushed last.
        done: Whether enough annotators have submitted.
        judgements: Sorted by annotator.
        shared: Content digests by row id of the near-duplicates to which a decision on this row also applies.
        assigned: Names of the people who are to decide the row; empty if everybody may.
        third_persons: Names of the people to whom a conflict on the row was sent.
        sampling: Places in a sample, as the server returns them, for `larf_curate.review.sampling`; None without one.
    """

    row_id: str
    content_digest: str
    done: bool
    judgements: tuple[Judgement, ...]
    shared: Mapping[str, str] = field(default_factory=dict)
    assigned: tuple[str, ...] = ()
    third_persons: tuple[str, ...] = ()
    sampling: object = None

    @property
    def counted(self) -> tuple[Judgement, ...]:
        """The judgements that count as decisions."""
        return tuple(judgement for judgement in self.judgements if judgement.counts)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Annotators whose edit has no corrected answer; none if another's edit has one."""
        if any(judgement.decision == "edit" and not judgement.is_unfinished for judgement in self.counted):
            return ()
        return tuple(judgement.annotator for judgement in self.counted if judgement.is_unfinished)


def read_records(records: Iterable[Mapping[str, Any]], usernames: Mapping[str, str]) -> list[ReviewedRecord]:
    """Read records with their responses; records that were not created by a push are skipped.

    Args:
        records: Records with responses, as returned by the server.
        usernames: User names by user id; unknown users are named by their id.
    """
    return [_reviewed(record, usernames) for record in records if CONTENT_DIGEST in (record["metadata"] or {})]


def _reviewed(record: Mapping[str, Any], usernames: Mapping[str, str]) -> ReviewedRecord:
    third_persons = tuple(username_of(term) for term in terms_of(record, THIRD_PERSON))
    judgements = [_judgement(response, usernames, record["metadata"]) for response in record.get("responses") or []]
    # A conflict is sent to a third person as an empty draft, which is nobody's answer.
    judgements = [j for j in judgements if not (j.is_empty_draft and j.annotator in third_persons)]
    return ReviewedRecord(
        row_id=record["external_id"],
        content_digest=record["metadata"][CONTENT_DIGEST],
        done=record["status"] == "completed",
        judgements=tuple(sorted(judgements, key=lambda judgement: judgement.annotator)),
        shared=record["metadata"].get(DECIDED_TOGETHER) or {},
        assigned=tuple(username_of(term) for term in terms_of(record, ASSIGNED)),
        third_persons=third_persons,
        sampling=record["metadata"].get(SAMPLING),
    )


def _judgement(response: Mapping[str, Any], usernames: Mapping[str, str], metadata: Mapping[str, Any]) -> Judgement:
    values = {name: answer["value"] for name, answer in (response["values"] or {}).items()}
    corrected, outdated = values.get("corrected_answer"), metadata.get(OUTDATED_RESPONSES) or {}
    if corrected and answer_digest(corrected) == metadata.get(ANSWER_DIGEST):
        corrected = None  # the page submits the suggested answer with every decision
    return Judgement(
        annotator=usernames.get(response["user_id"], response["user_id"]),
        status=response["status"],
        decision=values.get("decision"),
        category=values.get("category"),
        severity=values.get("severity"),
        rationale=values.get("rationale"),
        corrected_answer=corrected,
        time=datetime.fromisoformat(response["updated_at"]),
        # A response that was changed after the content is about the new content, though its id is the same.
        outdated=outdated.get(response["id"]) == response["updated_at"],
    )
