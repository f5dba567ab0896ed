"""What each result folder records, typed, and how it is checked.

``score`` writes ``manifest.json``, ``select`` writes ``selection.json`` and ``review pull`` writes ``decisions.json``.
Each is written last, so a folder that has one is complete, and each contains the manifest of the step before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Protocol, TypedDict, TypeVar, cast, get_args, get_origin, get_type_hints

from larf_curate.errors import InputError, ProfileMismatchError

VERSION = 1
PLAN = "plan.json"
"""Settings of a scoring run, written before its first shard."""


class ShardRecord(TypedDict):
    """One Parquet file of a scored dataset: its name, number of rows and hex SHA-256."""

    file: str
    rows: int
    sha256: str


class ScoredManifest(TypedDict):
    """``manifest.json``: what was scored, with which profile, and what came of it.

    ``source`` describes the dataset, ``profile`` is `SafetyProfile.summary`, ``status`` counts rows by ``larf_status``.
    """

    kind: str
    version: int
    package: str
    source: dict[str, Any]
    profile: dict[str, Any]
    signals: list[str]
    rows: int
    status: dict[str, int]
    shards: list[ShardRecord]


class SelectionManifest(TypedDict):
    """``selection.json``: the rule, the lowest flagged score, counts, and the manifest of the scored dataset."""

    kind: str
    version: int
    rule: dict[str, float]
    threshold: float | None
    counts: dict[str, int]
    scored: dict[str, Any]


class DecisionsManifest(TypedDict):
    """``decisions.json``: the merge rule, counts, and the manifest of the selection."""

    kind: str
    version: int
    merge: str
    counts: dict[str, int]
    selection: dict[str, Any]


Record = TypeVar("Record", ScoredManifest, SelectionManifest, DecisionsManifest)


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Record]):
    """A kind of result folder.

    Args:
        name: Value of ``kind`` in its manifest.
        file: Name of its manifest.
        content: What it holds, for messages.
        command: Subcommand that writes it.
        record: Type of its manifest.
    """

    name: str
    file: str
    content: str
    command: str
    record: type[Record]


SCORED = Kind(name="scored", file="manifest.json", content="a scored dataset", command="score", record=ScoredManifest)
SELECTION = Kind(
    name="selection", file="selection.json", content="a selection", command="select", record=SelectionManifest
)
DECISIONS = Kind(
    name="decisions", file="decisions.json", content="decisions", command="review pull", record=DecisionsManifest
)
KINDS: tuple[Kind[Any], ...] = (SCORED, SELECTION, DECISIONS)


def check_folder(folder: str | Path, kind: Kind[Any]) -> None:
    """Refuse to write into a folder that holds results of another kind, whose files have the same names.

    Args:
        folder: Where results shall go; it need not exist.
        kind: Their kind.

    Raises:
        InputError: If the folder has the manifest of another kind.
    """
    for other in KINDS:
        if other is not kind and (Path(folder) / other.file).exists():
            raise InputError(f"{folder} holds {other.content}, which would be overwritten: write to another folder")


def check_manifest(value: object, kind: Kind[Record], folder: str | Path) -> Record:
    """Check a manifest that was read from a folder.

    Args:
        value: Any JSON value.
        kind: The kind of folder that is wanted.
        folder: Where it was read, for messages.

    Returns:
        The value, typed.

    Raises:
        InputError: If it is of another kind or version, or a field is missing or of another type.
    """
    found = value.get("kind") if isinstance(value, dict) else type(value).__name__
    if not isinstance(value, dict) or found != kind.name:
        raise InputError(
            f"{folder} holds {found!r}, wanted {kind.content}: give the folder that larf-curate {kind.command} wrote"
        )
    if value.get("version") != VERSION:
        raise InputError(
            f"{folder} holds {kind.content} of version {value.get('version')!r}, wanted version {VERSION}: write it "
            f"again with larf-curate {kind.command}"
        )
    for field, wanted in _types(kind.record).items():
        if not isinstance(value.get(field), wanted):
            got = type(value[field]).__name__ if field in value else "nothing"
            raise InputError(
                f"{Path(folder) / kind.file} has {got} as {field!r}: write it again with larf-curate {kind.command}"
            )
    return cast(Record, value)


def _types(record: type[Any]) -> dict[str, tuple[type, ...]]:
    """The built-in types that each field of a manifest may have."""
    return {field: _builtins(hint) for field, hint in get_type_hints(record).items()}


def _builtins(hint: Any) -> tuple[type, ...]:  # noqa: ANN401  any type hint
    if isinstance(hint, UnionType):
        return tuple(found for part in get_args(hint) for found in _builtins(part))
    if hint is float:
        return (int, float)
    return (NoneType,) if hint is None else (get_origin(hint) or hint,)


class ScoringProfile(Protocol):
    """What `check_profile` needs of a safety profile."""

    @property
    def digest(self) -> str:
        """Hex digest of the profile."""
        ...

    def summary(self) -> dict[str, Any]:
        """The profile as its scored rows' manifest records it."""
        ...


def check_profile(profile: ScoringProfile, recorded: Mapping[str, Any] | None) -> None:
    """Refuse a profile that did not score some rows.

    Args:
        profile: The profile at hand.
        recorded: Summary of the profile that scored the rows, as in their manifest; without a digest, as for rows that
            were scored in memory, nothing can be checked.

    Raises:
        ProfileMismatchError: If the two differ; the message says in what.
    """
    recorded = recorded or {}
    if recorded.get("digest") in (None, profile.digest):
        return
    summary = profile.summary()
    names = [name for name in ("model", "revision", "dtype", "layers", "signal") if recorded.get(name) != summary[name]]
    differ = [f"{name} {recorded.get(name)} against {summary[name]}" for name in names] or ["other reference states"]
    raise ProfileMismatchError(
        f"another profile scored these rows ({'; '.join(differ)}): give that one, or score the rows again"
    )
