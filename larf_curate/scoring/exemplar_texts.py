"""Texts of a profile's references, whose ids alone would tell a reader nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from larf_curate.conversation.answers import answer
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
    references = _references(scored)
    rows = references.unsafe if references else ()
    return {f"reference-{index}": _request(row) for index, row in enumerate(rows)}


def safe_texts(scored: Mapping[str, Any]) -> list[str]:
    """Requests of the profile's safe references with their answers, in order; empty as for `exemplar_texts`."""
    references = _references(scored)
    return [f"{_request(row)} → {answer(row)}" for row in references.safe] if references else []


def _references(scored: Mapping[str, Any]) -> ReferenceSet | None:
    recorded = (scored.get("profile") or {}).get("references") or {}
    source = str(recorded.get("source", ""))
    if not source or (source != "builtin" and not Path(source).exists()):
        return None
    try:
        references = ReferenceSet.load(source)
    except ReferenceSetError:
        return None
    # Another text under the same id would mislead.
    return references if references.digest == recorded.get("digest") else None


def _request(row: Mapping[str, Any]) -> str:
    return str(next(m for m in to_messages(row) if m["role"] == "user")["content"])
