"""Finding the texts that a profile was built from: a profile stores states, not texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from larf_curate.conversation.schemas import Row
from larf_curate.data.references import ReferenceSet, load_neutral
from larf_curate.errors import ProfileError, ReferenceSetError
from larf_curate.profile.profile import SafetyProfile
from larf_curate.profile.provenance import neutral_digest


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that a profile was built from, in their order."""

    unsafe: tuple[Row, ...]
    safe: tuple[Row, ...]
    neutral: tuple[Row, ...]


def find_rows(
    profile: SafetyProfile,
    references: ReferenceSet | None = None,
    neutral: str | Path | Sequence[Row] | None = None,
) -> Rows | str:
    """Find the rows that a profile was built from.

    Args:
        profile: The profile.
        references: Its references. Default: those of its source, if it is ``builtin`` or a path that still exists.
        neutral: Its neutral rows. Default: likewise.

    Returns:
        The rows, or the reason why they are not available.

    Raises:
        ReferenceSetError: If the given rows are not those that the profile was built from.
    """
    sources = profile.references["source"], profile.neutral["source"]
    unavailable = [
        f"{name} ({source})"
        for name, given, source in zip(("references", "neutral rows"), (references, neutral), sources, strict=True)
        if given is None and not (source == "builtin" or Path(source).exists())
    ]
    if unavailable:
        return f"the texts of the {' and '.join(unavailable)} are not available; give them to evaluate the baselines"
    try:
        refs = ReferenceSet.load(sources[0]) if references is None else references
        neutral_rows = load_neutral(sources[1] if neutral is None else neutral)
    except ReferenceSetError as error:
        if neutral is not None:
            raise
        return f"the files of the references and neutral rows are not those that the profile was built from: {error}"
    for name, same, given in (
        ("references", refs.digest == profile.references["digest"], references),
        ("neutral rows", neutral_digest(neutral_rows) == profile.neutral["digest"], neutral),
    ):
        if same:
            continue
        if given is None:
            return f"the {name} are no longer those that the profile was built from"
        raise ReferenceSetError(f"wanted the {name} that the profile was built from, got others: give the same ones")
    return Rows(unsafe=refs.unsafe, safe=refs.safe, neutral=neutral_rows)


def reference_rows(profile: SafetyProfile) -> Rows:
    """The rows that a profile was built from, for text-only baselines.

    Raises:
        ProfileError: If they are not available.
    """
    rows = find_rows(profile)
    if isinstance(rows, str):
        raise ProfileError(
            f"the baselines length and tfidf are made from texts, which a profile does not keep: {rows.split(';')[0]}; "
            "restore the files at the paths with which the profile was built, or omit these signals"
        )
    return rows
