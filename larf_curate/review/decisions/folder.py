"""A folder of decisions that ``review pull`` or ``review import`` wrote, read again to learn from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larf_curate.manifests import DECISIONS, DecisionsManifest, read_manifest
from larf_curate.remote import local_copy, public_name
from larf_curate.review.decisions.merge import Decision
from larf_curate.review.decisions.outcome import JUDGED, Decisions


@dataclass(frozen=True, kw_only=True)
class DecisionsFolder:
    """Decisions and where they come from.

    Args:
        name: The folder as people know it, for messages.
        path: The folder on this machine.
        manifest: Its manifest.
        decided: Decisions to keep, remove or edit that people made on the rows themselves, by row id.
        counts: Number of decisions by what they are, those that are not in ``decided`` included.
    """

    name: str
    path: Path
    manifest: DecisionsManifest
    decided: Mapping[str, Decision]
    counts: Mapping[str, int]

    @classmethod
    def load(cls, folder: str | Path) -> "DecisionsFolder":
        """Read a folder, or its URL.

        Raises:
            InputError: If it is no such folder, or was changed.
        """
        path = local_copy(folder)
        decisions = Decisions.load(folder)
        decided = {
            row.row_id: row
            for row in decisions.rows
            if row.status == "decided" and row.decision in JUDGED and not row.decided_through
        }
        through = sum(row.status == "decided" and bool(row.decided_through) for row in decisions.rows)
        counts = decisions.counts | ({"near-identical": through} if through else {})
        return cls(
            name=public_name(folder),
            path=path,
            manifest=read_manifest(path, DECISIONS),
            decided=decided,
            counts=counts,
        )

    @property
    def scored(self) -> Mapping[str, Any]:
        """Manifest of the scored dataset; empty if it was scored in memory."""
        return self.manifest["selection"]["scored"]

    @property
    def profile(self) -> str | None:
        """Digest of the profile that scored the rows, if it is recorded."""
        recorded: str | None = (self.scored.get("profile") or {}).get("digest")
        return recorded
