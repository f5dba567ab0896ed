"""Answers submitted by script, as the web page submits a person's."""

from collections.abc import Mapping

from larf_curate.errors import InputError, ReviewError
from larf_curate.review.argilla.connection import Connection

PER_REQUEST = 100
"""The server's limit of answers in a request."""


def submit(annotator: Connection, records: Mapping[str, str], decisions: Mapping[str, str]) -> None:
    """Submit one decision for each row; a row answered before is answered anew.

    Args:
        annotator: A connection with the key of the user who decides.
        records: The server's record ids by row id.
        decisions: ``keep``, ``remove``, ``edit`` or ``unsure`` by row id.

    Raises:
        InputError: If a row has no record.
        ReviewError: If the server refuses an answer.
    """
    if missing := [row for row in decisions if row not in records]:
        raise InputError(f"{len(missing)} rows are not in the review queue, such as {missing[0]}: push them first")
    items = [
        {"record_id": records[row], "status": "submitted", "values": {"decision": {"value": decision}}}
        for row, decision in decisions.items()
    ]
    for start in range(0, len(items), PER_REQUEST):
        reply = annotator.request("POST", "/api/v1/me/responses/bulk", {"items": items[start : start + PER_REQUEST]})
        if refused := [item["error"] for item in reply["items"] if item["error"]]:
            raise ReviewError(f"the server refuses {len(refused)} answers: {refused[0]['detail']}")
