"""What a profile keeps of the rows it was built from: where they came from and a digest, not their texts."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.profile.reference_states import MATCHED


def describe(refs: ReferenceSet, sides: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Source, digest, counts and labels of references, and how many answers of each side were cut."""
    counts = {"unsafe": len(refs.unsafe), "safe": len(refs.safe)}
    wholes = {"unsafe": refs.unsafe, "safe": refs.safe}
    cut = {
        side: sum(new is not old for new, old in zip(sides.get(f"{side}{MATCHED}", rows), rows, strict=True))
        for side, rows in wholes.items()
    }
    return {"source": refs.source, "digest": refs.digest, **counts, "cut": cut, "labels": list(refs.labels)}


def describe_neutral(name: str | Path | Sequence[Row], rows: Sequence[Row]) -> dict[str, Any]:
    """Source, digest and count of neutral rows, without their folder."""
    source = Path(name).name if isinstance(name, str | Path) else "rows"
    return {"source": source, "digest": neutral_digest(rows), "rows": len(rows)}


def neutral_digest(rows: Sequence[Row]) -> str:
    """Hex SHA-256 of neutral rows."""
    text = json.dumps([to_messages(row) for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
