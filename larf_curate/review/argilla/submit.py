"""Decisions submitted by a script, through the endpoint that the web page uses."""

from collections.abc import Mapping

from larf_curate.errors import InputError, ReviewError
from larf_curate.review.argilla.connection import Connection

MAX_RESPONSES = 100
"""The server's limit per request."""


def submit(annotator: Connection, records: Mapping[str, str], decisions: Mapping[str, str]) -> None:
    """Submit one decision per row; an earlier answer of the same user is replaced.

    Args:
        annotator: A connection with the API key of the user who decides.
        records: The server's record ids by row id.
        decisions: ``keep``, ``remove``, ``edit`` or ``unsure`` by row id.

    Raises:
        InputError: If a row has no record.
        ReviewError: If the server rejects an answer.
    """
    if missing := [row for row in decisions if row not in records]:
        raise InputError(f"{len(missing)} rows are not in the review queue, such as {missing[0]}: push them first")
    items = [
        {"record_id": records[row], "status": "submitted", "values": {"decision": {"value": decision}}}
        for row, decision in decisions.items()
    ]
    for start in range(0, len(items), MAX_RESPONSES):
        reply = annotator.request("POST", "/api/v1/me/responses/bulk", {"items": items[start : start + MAX_RESPONSES]})
        if rejected := [item["error"] for item in reply["items"] if item["error"]]:
            raise ReviewError(f"the server rejects {len(rejected)} answers: {rejected[0]['detail']}")
