"""Texts of the nearest exemplars, whose ids alone would tell a reader nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from larf_curate.conversation.schemas import to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError


def exemplar_texts(scored: Mapping[str, Any]) -> dict[str, str]:
    """Requests of the profile's unsafe references, by exemplar id.

    Args:
        scored: Manifest of the scored dataset, which records where its references come from.

    Returns:
        Empty unless the references are built in or in a file on this machine, and unchanged.
    """
    recorded = (scored.get("profile") or {}).get("references") or {}
    source = str(recorded.get("source", ""))
    if not source or (source != "builtin" and not Path(source).exists()):
        return {}
    try:
        references = ReferenceSet.load(source)
    except ReferenceSetError:
        return {}
    if references.digest != recorded.get("digest"):  # another text under the same id would mislead
        return {}
    requests = (next(m for m in to_messages(row) if m["role"] == "user") for row in references.unsafe)
    return {f"reference-{index}": str(request["content"]) for index, request in enumerate(requests)}
