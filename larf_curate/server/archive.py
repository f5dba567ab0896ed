"""The file of a backup: a ZIP archive with the database, the accounts and the records of queues, and their digests."""

import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Annotated, ClassVar, Final

from pydantic import ConfigDict, Field

from larf_curate.errors import InputError
from larf_curate.files import atomic_path, check_readable, parse_json
from larf_curate.progress import progress
from larf_curate.records import STRICT, parse_record

FORMAT: Final = "larf-curate review backup"
VERSION: Final = 1
MANIFEST: Final = "backup.json"
DATABASE: Final = "argilla.db"
CREDENTIALS: Final = "credentials.json"
QUEUE: Final = re.compile(r"queues/[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.json")
"""Name of the record of a queue, by the id of its dataset."""
_MAX_MANIFEST_BYTES = 2**24
_CHUNK = 2**20
_REMEDY = "give a file that `larf-curate review backup` wrote"
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What `zipfile` raises for archives that are damaged, encrypted, or compressed otherwise."""


@dataclass(frozen=True)
class Member:
    """A file in a backup.

    Args:
        bytes: Its size.
        sha256: Hex SHA-256 of its content.
        modified: When it was last modified, in nanoseconds since 1970; records of queues are ordered by it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    modified: Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup has.

    Args:
        format: `FORMAT`.
        version: `VERSION`.
        larf_curate: Version of this package that wrote it.
        argilla_server: Version of Argilla's server whose database it has.
        schema: Revision of the schema of the database.
        created: When the database was copied, in ISO 8601 and UTC.
        counts: Number of ``datasets``, ``records``, ``responses`` and ``users``.
        files: The files by name.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    format: str = FORMAT
    version: int = VERSION
    larf_curate: str
    argilla_server: str
    schema: str
    created: str
    counts: dict[str, int]
    files: dict[str, Member] = field(default_factory=dict)


def write_archive(path: Path, files: Mapping[str, Path], manifest: Manifest) -> Manifest:
    """Write a backup atomically, with mode 0600.

    Args:
        path: The file to write.
        files: Files by their names in the backup.
        manifest: Its manifest, without files.

    Returns:
        The manifest with the files.
    """
    chunks = sum(-(-file.stat().st_size // _CHUNK) for file in files.values())
    with atomic_path(path, mode=0o600) as temporary:
        with (
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            progress(label="writing the backup", unit="MB", total=chunks) as bar,
        ):
            members = {name: _add(archive, name, file, bar.update) for name, file in files.items()}
            manifest = replace(manifest, files=members)
            archive.writestr(MANIFEST, json.dumps(asdict(manifest), indent=2))
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
    return manifest


def _add(archive: zipfile.ZipFile, name: str, file: Path, advance: Callable[[int], object]) -> Member:
    """Copy a file into an archive that is being written."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as source, archive.open(name, "w", force_zip64=True) as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            advance(1)
        modified = os.fstat(source.fileno()).st_mtime_ns
    return Member(size, digest.hexdigest(), modified)


def is_archive(path: Path) -> bool:
    """Whether a file is a backup, of any version."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _content(archive, path).get("format") == FORMAT
    except (InputError, OSError, KeyError, *_UNREADABLE):
        return False


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, Manifest]]:
    """Open a backup and check its manifest.

    Raises:
        InputError: If the file is missing, damaged, no backup, or one of a newer version.
    """
    try:
        check_readable(path)
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: {_REMEDY}") from error
    except (OSError, *_UNREADABLE) as error:
        raise InputError(f"{path} is no backup, or a part of one ({error}): {_REMEDY}") from error
    with archive:
        yield archive, _manifest(archive, path)


def _manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    """The checked manifest of a backup."""
    try:
        content = _content(archive, path)
    except KeyError as error:
        raise InputError(f"{path} is no backup of a review, it has no {MANIFEST}: {_REMEDY}") from error
    except _UNREADABLE as error:
        raise InputError(f"{path} is damaged ({error}): give another backup") from error
    if content.get("format") != FORMAT:
        raise InputError(f"{path} is no backup of a review: {_REMEDY}")
    if isinstance(version := content.get("version"), int) and version > VERSION:
        wrote = str(content.get("larf_curate"))[:40]
        raise InputError(
            f"{path} was written by a newer larf-curate ({wrote}): wanted at most version {VERSION} of the format, got "
            f"{version}; update larf-curate"
        )
    manifest = parse_record(content, Manifest, path=path, remedy=_REMEDY)
    _check_names(archive, manifest, path)
    return manifest


def _content(archive: zipfile.ZipFile, path: Path) -> dict[str, object]:
    """The manifest as JSON; raises KeyError if there is none."""
    with archive.open(MANIFEST) as stream:
        content = parse_json(stream.read(_MAX_MANIFEST_BYTES).decode(), f"{MANIFEST} in {path}")
    if not isinstance(content, dict):
        raise InputError(f"{path} is no backup of a review: {_REMEDY}")
    return content


def _check_names(archive: zipfile.ZipFile, manifest: Manifest, path: Path) -> None:
    """Require exactly the files that a backup has: no other name is ever written."""
    names = sorted(archive.namelist())
    if names != sorted([*manifest.files, MANIFEST]):
        raise InputError(f"{path} has other files than its {MANIFEST} says: give another backup")
    if not {DATABASE, CREDENTIALS} <= set(names):
        raise InputError(f"{path} lacks {DATABASE} or {CREDENTIALS}: give another backup")
    if foreign := [
        name for name in names if name not in (DATABASE, CREDENTIALS, MANIFEST) and not QUEUE.fullmatch(name)
    ]:
        raise InputError(f"{path} has {foreign[0][:80]!r}, which no backup has: {_REMEDY}")


def extract(archive: zipfile.ZipFile, name: str, wanted: Member, target: IO[bytes]) -> None:
    """Copy a file of a backup, and check its digest; no more than its recorded size is ever written.

    Raises:
        InputError: If it is damaged.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with archive.open(name) as source:
            while size <= wanted.bytes and (chunk := source.read(min(_CHUNK, wanted.bytes - size + 1))):
                size += len(chunk)
                digest.update(chunk)
                if size <= wanted.bytes:
                    target.write(chunk)
    except _UNREADABLE as error:
        raise InputError(f"{name} in {archive.filename} is damaged ({error}): give another backup") from error
    if (size, digest.hexdigest()) != (wanted.bytes, wanted.sha256):
        raise InputError(f"{name} in {archive.filename} was changed after it was written: give another backup")
