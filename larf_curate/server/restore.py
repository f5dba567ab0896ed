"""Restore a backup of a server's home into an empty folder, which gets its name when it is complete."""

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.files import read_json, write_first_json
from larf_curate.server.archive import CREDENTIALS, DATABASE, Manifest, extract, open_archive
from larf_curate.server.credentials import read_credentials
from larf_curate.server.environment import SERVER_VERSION
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import try_lock
from larf_curate.server.private_files import open_private
from larf_curate.server.snapshot import inspect_database

_ANOTHER = "give another backup, nothing was restored"


@dataclass(frozen=True)
class Restored:
    """What was restored.

    Args:
        manifest: Manifest of the backup.
        queues: Records of queues that are as in the backup.
        differing: Records of queues that exist already and differ; they were left as they are.
    """

    manifest: Manifest
    queues: tuple[Path, ...]
    differing: tuple[Path, ...]


def restore(source: Path, home: ServerHome, *, queues: Path) -> Restored:
    """Restore a backup into a folder that does not exist or is empty.

    What a killed restore has left beside the folder is removed by the next one.

    Args:
        source: The backup.
        home: The new home.
        queues: Folder for the records of queues; existing ones stay.

    Raises:
        InputError: If the file is no backup, is damaged, or was written by a newer version.
        ReviewServerError: If the folder is not empty or cannot be used, or the database in the backup is damaged.
    """
    final = Path(os.path.realpath(home.path))
    _check_empty(final)
    with open_archive(source) as (archive, manifest):
        _check_version(manifest, source)
        with _unfinished_home(final) as made:
            _check_space(made.path, manifest)
            _unpack(archive, manifest, made.path)
            _check_content(made, manifest, source)
            placed, differing = _place_records((made.path / "queues").glob("*.json"), queues)
            shutil.rmtree(made.path / "queues", ignore_errors=True)
            _rename(made.path, final)
    return Restored(manifest, tuple(placed), tuple(differing))


def _check_empty(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ReviewServerError(
            f"{path} is not empty: choose another folder with --home, or move it away; nothing was changed"
        )


def _check_version(manifest: Manifest, source: Path) -> None:
    """Refuse the database of a newer Argilla, which this version's server could not read."""
    if _numbers(manifest.argilla_server) > _numbers(SERVER_VERSION):
        raise InputError(
            f"{source} is of Argilla {manifest.argilla_server[:20]}, but this larf-curate has {SERVER_VERSION}: "
            "update larf-curate"
        )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"[0-9]{1,9}", version)]


@contextmanager
def _unfinished_home(final: Path) -> Iterator[ServerHome]:
    """An empty home beside the final one, which is removed unless it is renamed.

    It is locked as if a server ran on it, so that no other restore, and no server, uses it.
    """
    made = ServerHome(final.with_name(f".{final.name}.restoring"))
    made.make()
    lock = try_lock(made.running_lock)
    if lock is None:
        raise ReviewServerError(f"another restore into {final} is under way: wait for it to finish, or end it")
    try:
        for entry in made.path.iterdir():  # left by a killed restore
            if entry != made.running_lock:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield made
    finally:
        shutil.rmtree(made.path, ignore_errors=True)
        os.close(lock)


def _check_space(folder: Path, manifest: Manifest) -> None:
    wanted, free = sum(member.bytes for member in manifest.files.values()), shutil.disk_usage(folder).free
    if wanted > free:
        raise ReviewServerError(
            f"the backup needs {wanted / 1e9:.1f} GB, {folder.parent} has {free / 1e9:.1f} GB: choose another folder "
            "with --home"
        )


def _unpack(archive: zipfile.ZipFile, manifest: Manifest, folder: Path) -> None:
    """Write the files of a backup, whose names `open_archive` has checked, with mode 0600."""
    (folder / "queues").mkdir(mode=0o700)
    for name, member in manifest.files.items():
        handle = open_private(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with open(handle, "wb") as stream:
            extract(archive, name, member, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.utime(folder / name, ns=(member.modified, member.modified))


def _check_content(made: ServerHome, manifest: Manifest, source: Path) -> None:
    """Require accounts and a database that the server can use, and that are what the manifest says."""
    try:
        read_credentials(made.path / CREDENTIALS)
    except ReviewServerError as error:
        raise InputError(f"{CREDENTIALS} in {source} is damaged: {_ANOTHER}") from error
    found = inspect_database(made.path / DATABASE, remedy=_ANOTHER)
    if (found.schema, found.counts) != (manifest.schema, manifest.counts):
        raise InputError(f"{DATABASE} in {source} is not what its manifest says: {_ANOTHER}")


def _place_records(records: Iterable[Path], queues: Path) -> tuple[list[Path], list[Path]]:
    """Copy records of queues where there are none; returns those that are as in the backup, and those that are not."""
    placed: list[Path] = []
    differing: list[Path] = []
    for record in sorted(records):
        content, target = read_json(record), queues / record.name
        if not target.exists():
            write_first_json(target, content)
            shutil.copystat(record, target)  # the queue that was last pushed to is the one with the latest time
        (placed if read_json(target) == content else differing).append(target)
    return placed, differing


def _rename(made: Path, final: Path) -> None:
    """Give the complete home its name; an empty folder of this name is replaced."""
    try:
        os.rename(made, final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ReviewServerError(f"{final} is no longer empty: choose another folder with --home") from error
        if error.errno in (errno.EBUSY, errno.EXDEV):
            raise ReviewServerError(f"{final} is a mount point: choose a folder in it with --home") from error
        raise
