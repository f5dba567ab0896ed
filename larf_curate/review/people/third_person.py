"""Conflicts sent to a third person, who decides them beside those who disagree.

A record that enough people have answered is in nobody's queue any more, and Argilla cannot reopen one record for one
person. A draft can be: whoever has one finds it under *Draft* and submits it, whatever the state of the record. So the
person gets an empty draft of each conflict, and nobody else's queue changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from larf_curate.progress import progress
from larf_curate.review.argilla.connection import Connection, RejectedError
from larf_curate.review.argilla.dataset import MAX_FILTER_VALUES, RecordStore
from larf_curate.review.argilla.marks import set_terms, term_of, terms_of
from larf_curate.review.argilla.settings import THIRD_PERSON, THIRD_PERSON_TITLE

STATUSES = ("draft", "submitted", "discarded")
"""What a response can be."""


@dataclass(frozen=True, kw_only=True)
class SentConflicts:
    """Conflicts sent to a third person.

    Args:
        to: Name of the person.
        sent: Row ids of the conflicts that the person has to decide now, also those sent earlier.
        answered: Row ids of the conflicts that the person has answered, so that another one has to decide.
        discarded: Row ids of the conflicts that the person has discarded.
        failed: Row id and the server's reason, for each conflict that could not be sent.
        waiting: Number of rows with different answers that are not sent, since more answers are to come.
        url: Link that shows the person the conflicts to decide, and no others.
    """

    to: str
    sent: tuple[str, ...]
    answered: tuple[str, ...]
    discarded: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    waiting: int
    url: str


def send(
    store: RecordStore,
    records: Sequence[Mapping[str, Any]],
    conflicts: Sequence[str],
    person: Connection,
    *,
    waiting: int = 0,
) -> SentConflicts:
    """Send conflicts to a person, by an empty draft of each.

    It can be repeated: what the person has begun or answered is never replaced.

    Args:
        store: The review dataset.
        records: All its records, as returned by the server.
        conflicts: Row ids of completed records on which people disagree.
        person: A connection on behalf of the third person.
        waiting: Number of rows with different answers for which more are to come.
    """
    ids = {record["external_id"]: record["id"] for record in records}
    before = _statuses(store, conflicts, str(person.client.me.id))
    new = [row for row in conflicts if row not in before]
    sending = progress(new, label=f"Send to {person.client.me.username}", unit="conflict", leave=False) if new else ()
    reasons = {row: _create_draft(person, ids[row]) for row in sending}
    # Read again: a request whose reply was lost has been carried out all the same.
    after = _statuses(store, conflicts, str(person.client.me.id))
    by_status = {status: tuple(row for row in conflicts if after.get(row) == status) for status in STATUSES}
    term = term_of(person.client.me.username)
    wanted = {
        record["external_id"]: {*terms_of(record, THIRD_PERSON), term}
        for record in records
        if record["external_id"] in by_status["draft"]
    }
    set_terms(store, records, THIRD_PERSON, THIRD_PERSON_TITLE, wanted)
    return SentConflicts(
        to=person.client.me.username,
        sent=by_status["draft"],
        answered=by_status["submitted"],
        discarded=by_status["discarded"],
        failed=tuple((row, reasons.get(row) or "unknown") for row in conflicts if row not in after),
        waiting=waiting,
        url=third_person_link(store, person.client.me.username),
    )


def third_person_link(store: RecordStore, username: str) -> str:
    """Link that shows a third person the conflicts to decide."""
    return store.link(status="draft", terms={THIRD_PERSON: term_of(username)})


def _create_draft(person: Connection, record_id: str) -> str:
    """Create an empty draft, unless the person has a response already; returns the reason if the server refuses it."""
    try:
        person.request("POST", f"/api/v1/records/{record_id}/responses", {"status": "draft", "values": {}})
    except RejectedError as error:
        return str(error)
    return ""


def _statuses(store: RecordStore, rows: Sequence[str], user_id: str) -> dict[str, str]:
    """Status of a user's responses by row id."""
    statuses: dict[str, str] = {}
    for start in range(0, len(rows), MAX_FILTER_VALUES):
        for row, responses in store.responses(rows[start : start + MAX_FILTER_VALUES]).items():
            for response in responses:
                if response["user_id"] == user_id:
                    statuses[row] = response["status"]
    return statuses
