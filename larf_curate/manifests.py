"""Manifests of result folders: their types, and checks of a folder, a manifest and the profile it names.

``score`` writes ``manifest.json``, ``select`` writes ``selection.json`` and ``review pull`` writes ``decisions.json``.
Each is written last, so a folder that has one is complete, and each contains the manifest of the step before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, NotRequired, Protocol, TypedDict, TypeVar, cast, get_args, get_origin, get_type_hints

from larf_curate.errors import InputError, ProfileMismatchError

VERSION = 1
"""Version of all manifests, to be raised when an older one can no longer be read."""
PLAN = "plan.json"
"""Name of the file with the settings of a scoring run, written before its first shard."""


class ShardRecord(TypedDict):
    """One Parquet file of a scored dataset: its name, number of rows and hex SHA-256."""

    file: str
    rows: int
    sha256: str


class ScoredManifest(TypedDict):
    """``manifest.json``: what was scored, with which profile, and the resulting shards.

    ``source`` describes the dataset, ``profile`` is `SafetyProfile.summary`, and ``status`` is the number of rows by
    ``larf_status``.
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


class GuardedManifest(ScoredManifest):
    """``manifest.json`` of rows that a guard model judged too: its name, and the number of rows by status."""

    guard: dict[str, Any]


class SelectionManifest(TypedDict):
    """``selection.json``: the rule, the lowest flagged score, counts, and the manifest of the scored dataset.

    ``shards`` are the files of the folder, by their paths in it; publishing requires them.
    """

    kind: str
    version: int
    rule: dict[str, float]
    threshold: float | None
    counts: dict[str, int]
    scored: dict[str, Any]
    shards: NotRequired[list[ShardRecord]]


class DecisionsManifest(TypedDict):
    """``decisions.json``: the merge rule, counts, the manifest of the selection, and ``shards`` as in a selection."""

    kind: str
    version: int
    merge: str
    counts: dict[str, int]
    selection: dict[str, Any]
    shards: NotRequired[list[ShardRecord]]


Record = TypeVar("Record", ScoredManifest, SelectionManifest, DecisionsManifest)


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Record]):
    """A kind of result folder.

    Args:
        name: Value of ``kind`` in the manifest.
        file: File name of the manifest.
        content: Description of the content, for error messages.
        command: Subcommand of ``larf-curate`` that writes such a folder.
        record: Type of the manifest.
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
    """Check that writing results into a folder does not overwrite results of another kind.

    Args:
        folder: Output folder; it need not exist.
        kind: Kind of the results to be written.

    Raises:
        InputError: If the folder has the manifest of another kind.
    """
    # Selections and decisions both have a subfolder ``kept``, so neither may be written over the other.
    for other in KINDS:
        if other is not kind and (Path(folder) / other.file).exists():
            raise InputError(f"{folder} holds {other.content}, which would be overwritten: write to another folder")


def check_manifest(value: object, kind: Kind[Record], folder: str | Path) -> Record:
    """Check the kind, version and field types of a manifest.

    Args:
        value: Content of a manifest file, any JSON value.
        kind: Expected kind of folder.
        folder: Folder that it was read from, for error messages.

    Returns:
        The same value with its type; additional fields are kept.

    Raises:
        InputError: If the kind or version differs, or a field is missing or has another type.
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
    for field, wanted in _field_types(kind.record).items():
        if not isinstance(value.get(field), wanted):
            got = type(value[field]).__name__ if field in value else "nothing"
            raise InputError(
                f"{Path(folder) / kind.file} has {got} as {field!r}: write it again with larf-curate {kind.command}"
            )
    return cast(Record, value)


def _field_types(record: type[Any]) -> dict[str, tuple[type, ...]]:
    """Built-in types by field of a manifest, as `isinstance` takes them."""
    hints = get_type_hints(record)
    return {field: _runtime_types(hint) for field, hint in hints.items() if field in record.__required_keys__}


def _runtime_types(hint: Any) -> tuple[type, ...]:  # noqa: ANN401  any type hint
    """Types of the JSON values that match a type hint; item types of lists and dicts are not checked."""
    if isinstance(hint, UnionType):
        return tuple(found for part in get_args(hint) for found in _runtime_types(part))
    if hint is float:
        return (int, float)  # an integer is a valid value of a float field
    return (NoneType,) if hint is None else (get_origin(hint) or hint,)


class ScoringProfile(Protocol):
    """The interface of a safety profile that `check_profile` uses.

    A protocol, since manifests are below profiles in the package and cannot import them.
    """

    @property
    def digest(self) -> str:
        """Hex digest of all that determines its scores."""
        ...

    def summary(self) -> dict[str, Any]:
        """Description of the profile, as recorded in a manifest."""
        ...


def check_profile(profile: ScoringProfile, recorded: Mapping[str, Any] | None) -> None:
    """Check that a profile is the one that scored some rows.

    Args:
        profile: The profile.
        recorded: Summary of the profile that scored the rows, from their manifest. Without a digest, as for rows that
            were scored in memory, any profile is accepted.

    Raises:
        ProfileMismatchError: If the two differ; the message lists the differences.
    """
    recorded = recorded or {}
    if recorded.get("digest") in (None, profile.digest):
        return
    summary = profile.summary()
    names = [name for name in ("model", "revision", "dtype", "layers", "signal") if recorded.get(name) != summary[name]]
    differ = [f"{name} {recorded.get(name)} against {summary[name]}" for name in names] or ["other reference states"]
    raise ProfileMismatchError(
        f"another profile scored these rows ({'; '.join(differ)}): use that profile, or score the rows again"
    )
