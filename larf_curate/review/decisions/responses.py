"""What annotators answered: one judgement for each record and annotator."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from larf_curate.review.records.record import CONTENT_DIGEST, DECIDED_TOGETHER, OUTDATED_RESPONSES


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One annotator's answer to one record.

    Args:
        annotator: User name.
        status: ``submitted``, ``draft`` or ``discarded``.
        decision: ``keep``, ``remove``, ``edit`` or ``unsure``; None if a draft or discard has none.
        category: Hazard category.
        severity: ``low``, ``medium`` or ``high``.
        rationale: Free text.
        corrected_answer: New text of the last assistant turn.
        time: When it was last changed.
        outdated: Whether it was given to an earlier content of the row.
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
        """Whether it is a decision: submitted, and about the row as it is now."""
        return self.status == "submitted" and self.decision is not None and not self.outdated


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """A record with its judgements.

    Args:
        row_id: The row's ``larf_row_id``.
        content_digest: Digest of the content that was shown.
        done: Whether enough annotators have submitted.
        judgements: In the order of annotators' names.
        shared: Row id and content digest of near-identical rows that a decision on this one serves.
    """

    row_id: str
    content_digest: str
    done: bool
    judgements: tuple[Judgement, ...]
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def counted(self) -> tuple[Judgement, ...]:
        """The judgements that are decisions."""
        return tuple(judgement for judgement in self.judgements if judgement.counts)


def read_records(records: Iterable[Mapping[str, Any]], usernames: Mapping[str, str]) -> list[Reviewed]:
    """Read records with responses, as the server lists them; records that no push made are left out.

    Args:
        records: The server's records.
        usernames: User names by id; an unknown user goes by the id.
    """
    return [_reviewed(record, usernames) for record in records if CONTENT_DIGEST in (record["metadata"] or {})]


def _reviewed(record: Mapping[str, Any], usernames: Mapping[str, str]) -> Reviewed:
    outdated = record["metadata"].get(OUTDATED_RESPONSES) or {}
    judgements = [_judgement(response, usernames, outdated) for response in record.get("responses") or []]
    return Reviewed(
        row_id=record["external_id"],
        content_digest=record["metadata"][CONTENT_DIGEST],
        done=record["status"] == "completed",
        judgements=tuple(sorted(judgements, key=lambda judgement: judgement.annotator)),
        shared=record["metadata"].get(DECIDED_TOGETHER) or {},
    )


def _judgement(response: Mapping[str, Any], usernames: Mapping[str, str], outdated: Mapping[str, str]) -> Judgement:
    values = {name: answer["value"] for name, answer in (response["values"] or {}).items()}
    return Judgement(
        annotator=usernames.get(response["user_id"], response["user_id"]),
        status=response["status"],
        decision=values.get("decision"),
        category=values.get("category"),
        severity=values.get("severity"),
        rationale=values.get("rationale"),
        corrected_answer=values.get("corrected_answer"),
        time=datetime.fromisoformat(response["updated_at"].replace("Z", "+00:00")),
        outdated=outdated.get(response["id"]) == response["updated_at"],
    )
