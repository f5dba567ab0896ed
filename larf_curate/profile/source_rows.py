"""The texts that a profile was built from, found again: a profile keeps states, not texts."""

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
    """The rows a profile was built from, in their order."""

    unsafe: tuple[Row, ...]
    safe: tuple[Row, ...]
    neutral: tuple[Row, ...]


def find_rows(
    profile: SafetyProfile,
    references: ReferenceSet | None = None,
    neutral: str | Path | Sequence[Row] | None = None,
) -> Rows | str:
    """The rows a profile was built from, or why they are not to be had.

    Args:
        profile: The profile.
        references: Its references; if left out, those its source names: ``builtin`` or a path that still exists.
        neutral: Its neutral rows; if left out, likewise.

    Raises:
        ReferenceSetError: If the rows given are not those that the profile was built from.
    """
    sources = profile.references["source"], profile.neutral["source"]
    lost = [
        f"{name} ({source})"
        for name, given, source in zip(("references", "neutral rows"), (references, neutral), sources, strict=True)
        if given is None and not (source == "builtin" or Path(source).exists())
    ]
    if lost:
        return f"the texts of the {' and '.join(lost)} are not at hand; name them to judge their words"
    refs = ReferenceSet.load(sources[0]) if references is None else references
    ordinary = load_neutral(sources[1] if neutral is None else neutral)
    for name, same, given in (
        ("references", refs.digest == profile.references["digest"], references),
        ("neutral rows", neutral_digest(ordinary) == profile.neutral["digest"], neutral),
    ):
        if same:
            continue
        if given is None:
            return f"the {name} are no longer those that the profile was built from"
        raise ReferenceSetError(f"wanted the {name} that the profile was built from, got others: name the same ones")
    return Rows(unsafe=refs.unsafe, safe=refs.safe, neutral=ordinary)


def reference_rows(profile: SafetyProfile) -> Rows:
    """The rows a profile was built from.

    Raises:
        ProfileError: If they are not at hand.
    """
    rows = find_rows(profile)
    if isinstance(rows, str):
        raise ProfileError(
            f"the baselines length and tfidf are made from texts, which a profile does not keep: {rows.split(';')[0]}; "
            "put them where they lay when the profile was built, or leave these signals out"
        )
    return rows
