"""Provenance of the rows of a profile: their source and a digest, but not their texts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.profile.reference_states import MATCHED
from larf_curate.remote import last_part


def describe(refs: ReferenceSet, sides: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Describe references: source, digest, counts, labels, and the number of cut answers of each side."""
    counts = {"unsafe": len(refs.unsafe), "safe": len(refs.safe)}
    # A matched side contains the original object of every row that was not cut.
    originals = {"unsafe": refs.unsafe, "safe": refs.safe}
    cut = {
        side: sum(new is not old for new, old in zip(sides.get(f"{side}{MATCHED}", rows), rows, strict=True))
        for side, rows in originals.items()
    }
    return {"source": refs.source, "digest": refs.digest, **counts, "cut": cut, "labels": list(refs.labels)}


def describe_neutral(name: str | Path | Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Describe neutral rows: source without its folder, digest and count."""
    source = last_part(name) if isinstance(name, str | Path) else "rows"
    return {"source": source, "digest": neutral_digest(rows), "rows": len(rows)}


def neutral_digest(rows: Sequence[Row]) -> str:
    """Hex SHA-256 of neutral rows, by their messages."""
    text = json.dumps([to_messages(row) for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
