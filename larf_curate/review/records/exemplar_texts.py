"""The texts behind the nearest exemplars: ids alone tell a reviewer nothing."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from larf_curate.conversation.schemas import to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError


def exemplar_texts(scored: Mapping[str, Any]) -> dict[str, str]:
    """Requests of the references that a selection's neighbours name, by exemplar id; none if they cannot be read.

    Args:
        scored: Manifest of the scored dataset; its references are ``builtin`` or a path on this machine, and unchanged.
    """
    described = (scored.get("profile") or {}).get("references") or {}
    source = str(described.get("source", ""))
    if source != "builtin" and not Path(source).exists():
        return {}
    try:
        references = ReferenceSet.load(source)
    except ReferenceSetError:
        return {}
    if references.digest != described.get("digest"):
        return {}
    requests = (next(m for m in to_messages(row) if m["role"] == "user") for row in references.unsafe)
    return {f"reference-{index}": str(request["content"]) for index, request in enumerate(requests)}
