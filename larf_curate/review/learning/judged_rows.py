"""The texts of rows that people decided, from folders of decisions, and what of them can teach a profile."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from larf_curate.columns import ROW_ID
from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.data.tables import read_parquet, undecoded
from larf_curate.errors import ConversationError, InputError, ProfileMismatchError
from larf_curate.profile import SafetyProfile
from larf_curate.review.decisions.folder import DecisionsFolder

REVIEWED = "reviewed"
"""Hazard category of a removed row to which nobody gave one."""
SAME_TEXT, CONTRADICTION = "same text as another row", "same text decided differently"


@dataclass(frozen=True, kw_only=True)
class JudgedRow:
    """A row that people decided.

    Args:
        row: The row, with the corrected answer if it was edited.
        columns: Column names by role, if the dataset was scored with them.
        removed: Whether it was removed; else it is kept as it is here.
        edited: Whether its answer was corrected: then only the last one was judged.
        label: Hazard category.
        folder: Digest of the decisions that it is from.
    """

    row: Row
    columns: Mapping[str, str] | None
    removed: bool
    edited: bool
    label: str
    folder: str

    @property
    def key(self) -> str:
        """Digest of its messages, whatever columns they are in."""
        messages = to_messages(self.row, self.columns)
        return hashlib.sha256(json.dumps(messages, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class JudgedRows:
    """The rows of several folders, each text once.

    Args:
        rows: The rows.
        left_out: Number of other decided rows by why they are left out.
        folders: The folders.
    """

    rows: tuple[JudgedRow, ...]
    left_out: Counter[str] = field(default_factory=Counter)
    folders: tuple[DecisionsFolder, ...] = ()


def read_judged(folders: Iterable[str | Path], profile: SafetyProfile) -> JudgedRows:
    """Read rows that people kept, edited or removed.

    An edited row counts as a kept one, with its corrected answer. Its original answer is not used: an edit may concern
    something else than harm. Rows without a decision of their own are not used, and neither are rows with the same text
    and different decisions.

    Args:
        folders: Folders that ``review pull`` or ``review import`` wrote, or their URLs.
        profile: The profile that scored the rows, or a later version of it.

    Raises:
        InputError: If a folder is damaged or was added to the profile before, or no row can be used.
        ProfileMismatchError: If another profile scored the rows of a folder.
    """
    loaded = [DecisionsFolder.load(folder) for folder in folders]
    _check_new(loaded, profile)
    left_out: Counter[str] = Counter()
    by_text: dict[str, list[JudgedRow]] = {}
    for folder in loaded:
        _check_scored_by(folder, profile)
        left_out.update({name: folder.counts[name] for name in folder.counts if name not in ("keep", "remove", "edit")})
        for row in _rows(folder):
            try:
                by_text.setdefault(row.key, []).append(row)
            except ConversationError:
                left_out["no conversation"] += 1
    chosen = []
    for same in by_text.values():
        if len({row.removed for row in same}) > 1:
            left_out[CONTRADICTION] += len(same)
            continue
        chosen.append(same[0])
        left_out[SAME_TEXT] += len(same) - 1
    if not chosen:
        why = ", ".join(f"{count} {name}" for name, count in (+left_out).items()) if +left_out else "nobody decided any"
        raise InputError(f"no decided row to add ({why}): wanted rows that people kept, removed or edited")
    return JudgedRows(rows=tuple(chosen), left_out=+left_out, folders=tuple(loaded))


def dataset_name(folder: DecisionsFolder) -> str:
    """Name of the dataset of a folder, as it was scored; else that of the folder."""
    return str((folder.scored.get("source") or {}).get("dataset") or folder.path.name)


def _rows(folder: DecisionsFolder) -> Iterable[JudgedRow]:
    columns = (folder.scored.get("source") or {}).get("columns")
    for part in ("kept", "removed"):
        rows = undecoded(read_parquet(folder.path / part))
        ids = rows.with_format(None)[ROW_ID][:]
        decided = [index for index, name in enumerate(ids) if name in folder.decided]
        for row in rows.select(decided):
            decision = folder.decided[row[ROW_ID]]
            yield JudgedRow(
                row=row,
                columns=columns,
                removed=part == "removed",
                edited=decision.decision == "edit",
                label=decision.category or REVIEWED,
                folder=folder.manifest["digest"],
            )


def _check_new(folders: Iterable[DecisionsFolder], profile: SafetyProfile) -> None:
    """Refuse decisions that the profile has already, and a folder that is given twice."""
    seen = {each["digest"] for each in (profile.decisions or {"added": []})["added"]}
    for folder in folders:
        if folder.manifest["digest"] in seen:
            raise InputError(f"the decisions in {folder.name} are in the profile already, or given twice: leave it out")
        seen.add(folder.manifest["digest"])


def _check_scored_by(folder: DecisionsFolder, profile: SafetyProfile) -> None:
    """Check that the profile, or an earlier version of it, scored the rows of a folder."""
    versions = (profile.digest, *(profile.decisions or {"versions": []})["versions"])
    if folder.profile not in versions:
        found = f"profile {folder.profile[:12]}" if folder.profile else "no recorded profile"
        raise ProfileMismatchError(
            f"{found} scored the rows of {folder.name}, wanted {profile.digest[:12]} or a version before it: add the "
            "decisions to the profile that scored the rows, or score them with this one and review them again"
        )
