"""Manifests of result folders: their schemas, and checks of a folder, its shards and the profile that it names.

``score`` writes ``manifest.json``, ``select`` writes ``selection.json`` and ``review pull`` or ``review import`` writes
``decisions.json``.
Each is written last, so a folder that has one is complete. Each has a digest of itself and of every shard beside it,
and contains the manifest of the step before it: so the whole chain from the source to the decisions is verified.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NotRequired, Protocol, TypeVar, cast

from pydantic import JsonValue
from typing_extensions import TypedDict

from larf_curate.errors import InputError, ProfileMismatchError
from larf_curate.files import read_json, sha256
from larf_curate.records import FOREIGN, STRICT, check_seal, parse_record, read_sealed
from larf_curate.verification import is_unchanged

VERSION = 2
"""Version of all manifests, to be raised when an older one can no longer be read."""
PLAN = "plan.json"
"""Name of the file with the settings of a scoring run, written before its first shard."""


class ShardRecord(TypedDict):
    """One Parquet file: its path in the folder, number of rows, size and hex SHA-256; earlier versions have no size."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    file: str
    rows: int
    bytes: NotRequired[int]
    sha256: str


class SourceRecord(TypedDict):
    """Description of a scored dataset: its name, whatever identifies its version, and the columns by role."""

    __pydantic_config__ = FOREIGN  # type: ignore[misc]

    dataset: NotRequired[str]
    columns: NotRequired[dict[str, str] | None]


class ReferencesRecord(TypedDict):
    """Description of the references of a profile: source, digest, and numbers of rows and of cut answers by side."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    source: str
    digest: str
    unsafe: int
    safe: int
    cut: dict[str, int]


class NeutralRecord(TypedDict):
    """Description of the neutral rows of a profile."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    source: str
    digest: str
    rows: int


class ChangeRecord(TypedDict):
    """AUROC before and after, and the 95 % interval of the change; all are held-out figures."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    before: float
    after: float
    low: float
    high: float


class AddedRecord(TypedDict):
    """A folder of decisions that was added to a profile: name of its dataset, digest, and numbers of decided rows."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    dataset: str
    digest: str
    removed: int
    kept: int


class DecidedRecord(TypedDict):
    """Decided rows that were added to a profile: where they come from, how many it has, and what they changed.

    ``versions`` has the digests of the earlier versions of the profile, the first one first. ``figures`` is about the
    rows added last: how well they, held out, and the references, held out, are ranked; null if there are too few.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    versions: list[str]
    added: list[AddedRecord]
    rows: dict[str, int]
    figures: dict[str, ChangeRecord | None]


class CalibrationRecord(TypedDict):
    """Number of neutral rows, and the upper half of their held-out scores in falling order."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    neutral_rows: int
    highest: list[float]


class ProfileRecord(TypedDict):
    """Summary of the profile that scored the rows; see `SafetyProfile.summary`."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    model: str
    adapter: NotRequired[str]
    revision: str | None
    dtype: str
    layers: list[int]
    layer_choice: dict[str, JsonValue]
    signal: str
    top_k: int | None
    max_length: int
    template_sha256: str
    input_separator: NotRequired[str]
    references: ReferencesRecord
    neutral: NeutralRecord
    calibration: CalibrationRecord
    digest: str
    package: str
    decisions: NotRequired[DecidedRecord]


class GuardRecord(TypedDict):
    """The guard model that judged the rows too, and the number of rows by status of ``larf_guard``."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    model: str
    status: dict[str, int]


class ScoredManifest(TypedDict):
    """``manifest.json``: what was scored, with which profile, and the resulting shards.

    ``status`` is the number of rows by ``larf_status``, ``scores`` the digest of ``larf_score``
    (`larf_curate.columns.scores_digest`), and ``digest`` that of all other fields.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kind: Literal["scored"]
    version: int
    package: str
    source: SourceRecord
    profile: ProfileRecord
    signals: list[str]
    rows: int
    status: dict[str, int]
    scores: str
    shards: list[ShardRecord]
    guard: NotRequired[GuardRecord]
    digest: str


class Empty(TypedDict):
    """In place of the manifest of a dataset that was scored or selected in memory."""

    __pydantic_config__ = STRICT  # type: ignore[misc]


class PartsRecord(TypedDict):
    """Digests of the row ids of both parts of a selection; see `larf_curate.columns.ids_digest`."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kept: str
    flagged: str


class SelectionManifest(TypedDict):
    """``selection.json``: the rule, the lowest flagged score, counts, ids, shards, and the manifest of the scored rows.

    ``ids`` and the manifest's ``scores`` bind the rows of later steps to it.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kind: Literal["selection"]
    version: int
    rule: dict[str, float]
    threshold: float | None
    counts: dict[str, int]
    status: dict[str, int]
    ids: PartsRecord
    shards: list[ShardRecord]
    scored: ScoredManifest | Empty
    digest: str


class DecisionsManifest(TypedDict):
    """``decisions.json``: the merge rule, counts, shards, and the manifest of the selection."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kind: Literal["decisions"]
    version: int
    merge: str
    counts: dict[str, int]
    shards: list[ShardRecord]
    selection: SelectionManifest
    digest: str


class Plan(TypedDict):
    """``plan.json``: the source, the settings of the scorer, and the number of rows of a scoring run."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    source: dict[str, JsonValue]
    scorer: dict[str, JsonValue]
    rows: int
    guard: NotRequired[dict[str, JsonValue]]
    digest: str


Record = TypeVar("Record", ScoredManifest, SelectionManifest, DecisionsManifest)


@dataclass(frozen=True, kw_only=True)
class Kind(Generic[Record]):
    """A kind of result folder.

    Args:
        name: Value of ``kind`` in the manifest.
        file: File name of the manifest.
        content: Description of the content, for error messages.
        command: Subcommand of ``larf-curate`` that writes such a folder.
        record: Schema of the manifest.
        before: Field with the manifest of the step before, if there is one, and its kind.
    """

    name: str
    file: str
    content: str
    command: str
    record: type[Record]
    before: tuple[str, "Kind[Any]"] | None = None

    @property
    def remedy(self) -> str:
        """What to do if the folder is damaged."""
        return f"write it again with larf-curate {self.command}"


SCORED = Kind(name="scored", file="manifest.json", content="a scored dataset", command="score", record=ScoredManifest)
SELECTION = Kind(
    name="selection",
    file="selection.json",
    content="a selection",
    command="select",
    record=SelectionManifest,
    before=("scored", SCORED),
)
DECISIONS = Kind(
    name="decisions",
    file="decisions.json",
    content="decisions",
    command="review pull or review import",
    record=DecisionsManifest,
    before=("selection", SELECTION),
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


def read_manifest(folder: str | Path, kind: Kind[Record]) -> Record:
    """Read the manifest of a folder, and check it with the manifests that it contains.

    Raises:
        InputError: If it is missing, of another kind or version, differs from its schema, or was changed.
    """
    return check_manifest(read_json(Path(folder) / kind.file), kind, folder)


def check_manifest(value: object, kind: Kind[Record], folder: str | Path) -> Record:
    """Check the kind, version, schema and digest of a manifest and of those that it contains.

    Args:
        value: Content of a manifest file, any JSON value.
        kind: Expected kind of folder.
        folder: Folder that it was read from, for error messages.

    Returns:
        The same value with its type.

    Raises:
        InputError: If the kind or version differs, a field has another type, or the content was changed.
    """
    if not isinstance(value, dict) or value.get("kind") != kind.name:
        found = value.get("kind") if isinstance(value, dict) else value
        raise InputError(
            f"wanted {kind.content} in {folder}, got {ascii(found)[:60]} as kind in {kind.file}: give the folder that "
            f"larf-curate {kind.command} wrote"
        )
    if value.get("version") != VERSION:
        raise InputError(
            f"{folder} holds {kind.content} of version {str(value.get('version'))[:20]}, wanted version {VERSION}: "
            f"{kind.remedy}"
        )
    path = Path(folder) / kind.file
    parsed = parse_record(value, kind.record, path=path, remedy=kind.remedy)
    _check_seals(parsed, kind, path, kind.remedy)
    return parsed


def _check_seals(value: Mapping[str, Any], kind: Kind[Any], path: Path, remedy: str) -> None:
    """Check the digests of a manifest and of those that it contains, the first step first."""
    if kind.before and value[kind.before[0]]:
        name, earlier = kind.before
        _check_seals(value[name], earlier, path, remedy)
        if value[name]["version"] != VERSION:
            raise InputError(f"{path} holds {earlier.content} of another version than {VERSION}: {remedy}")
    check_seal(value, path=path, remedy=remedy)


def read_plan(folder: Path) -> Plan:
    """Read the settings of the scoring run in a folder.

    Raises:
        InputError: If they are missing or damaged.
    """
    return read_sealed(folder / PLAN, Plan, remedy="score into another folder")


def shard_record(path: Path, rows: int, *, folder: Path) -> ShardRecord:
    """Describe a shard that was written completely.

    Args:
        path: The shard.
        rows: Its number of rows.
        folder: The result folder, to which its recorded path is relative.
    """
    size = path.stat().st_size
    record = {"file": path.relative_to(folder).as_posix(), "rows": rows, "bytes": size, "sha256": sha256(path)}
    return cast(ShardRecord, record)


def check_shards(
    folder: str | Path, shards: Sequence[ShardRecord], *, remedy: str, parts: Sequence[str] = ("",), verify: bool = True
) -> None:
    """Check that a folder has exactly the shards of its manifest, unchanged.

    Args:
        folder: The result folder.
        shards: The shards in its manifest.
        remedy: What to do if they differ, as the end of the message.
        parts: Subfolders of the shards.
        verify: Whether to compare their digests; each version of a file is read once.

    Raises:
        InputError: If a shard is missing, was changed or is not in the manifest, or a path or link leads out of the
            folder.
    """
    root, recorded = Path(folder), {shard["file"]: shard for shard in shards}
    present = {path.relative_to(root).as_posix() for part in parts for path in visible_shards(root / part)}
    if foreign := sorted(present - set(recorded)):
        raise InputError(f"{root} has {foreign[0]}, which its manifest does not list: remove it, or {remedy}")
    for name, shard in recorded.items():
        path = root / name
        if not _is_within(path, root):
            first = _link_removal(path, root)
            raise InputError(f"{root} has the shard {name[:60]!r}, which is outside of the folder: {first}{remedy}")
        if not path.is_file():
            raise InputError(f"{path} is not there: {remedy}")
        if verify and not is_unchanged(path, shard["sha256"], size=shard.get("bytes")):
            raise InputError(f"{path} was changed after it was written: {remedy}")


def _is_within(path: Path, root: Path) -> bool:
    """Whether a path, followed through links, is in a folder; a link to itself is nowhere."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # up to Python 3.12, a loop is a RuntimeError
        return False


def _link_removal(path: Path, root: Path) -> str:
    """The beginning of a remedy: which link in a folder to remove, of those that a path goes through."""
    link = next((part for part in (path, *path.parents) if root in part.parents and part.is_symlink()), None)
    return f"remove the link {link}, then " if link else ""


def visible_shards(folder: Path) -> list[Path]:
    """The Parquet files in a folder in name order, without hidden ones, which are incomplete."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


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
