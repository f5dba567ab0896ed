"""The folder of the embedded server: paths of its database, credentials, log, state and locks."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

import psutil

from larf_curate.errors import ReviewServerError
from larf_curate.files import data_folder, former_folders
from larf_curate.server.locks import is_locked

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "fuse.sshfs"})
"""File systems whose locks SQLite cannot rely on, and on which its write-ahead log does not work:
https://sqlite.org/wal.html, https://sqlite.org/faq.html#q5."""


@dataclass(frozen=True)
class ServerHome:
    """The folder of one embedded server and the paths of its files.

    Args:
        path: The folder; it contains row texts and secrets and is readable by its owner only.
    """

    path: Path

    @classmethod
    def at(cls, path: str | Path | None = None) -> "ServerHome":
        """The home at ``path``, by default ``argilla`` in the data folder.

        A server of an earlier version that is still running keeps its folder in the cache until it has stopped.
        """
        if path is not None:
            return cls(Path(path).expanduser().absolute())
        running = [home for home in map(cls, former_folders("argilla")) if is_locked(home.running_lock)]
        return running[0] if running else cls(data_folder("argilla"))

    def make(self) -> None:
        """Create the folder with mode 0700, or check the one that exists.

        Raises:
            ReviewServerError: If the folder cannot be used, see `problem`.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (problem := self.problem()) is not None:
            raise ReviewServerError("{}: {}".format(*problem))

    def problem(self) -> tuple[str, str] | None:
        """Why the existing folder cannot be used, and what to do about it; None if it can be.

        Whoever can write to the folder can replace the credentials and the answers of reviewers.
        """
        another = "or choose another folder with --home"
        status = self.path.stat()
        if status.st_uid != os.geteuid():
            return f"{self.path} belongs to another user (id {status.st_uid})", f"change its owner, {another}"
        if status.st_mode & 0o022:
            mode = stat.S_IMODE(status.st_mode)
            return f"other users can write to {self.path} (mode {mode:04o})", f"chmod 700 {self.path}, {another}"
        if links := sorted(entry.name for entry in os.scandir(self.path) if entry.is_symlink()):
            found = f"{self.path / links[0]} is a link"
            return found, "remove it, or replace it by what it leads to; the server follows no links"
        if (kind := _file_system(self.path)) in NETWORK_FILE_SYSTEMS:
            found = f"{self.path} is on a network file system ({kind}), where locks of SQLite fail and answers get lost"
            return found, "choose a folder on a local disk with --home"
        return None

    @property
    def database(self) -> Path:
        """Argilla's SQLite database: datasets, records, responses and users."""
        return self.path / "argilla.db"

    @property
    def search_index(self) -> Path:
        """Full-text index of the records; can be built again from the database."""
        return self.path / "search.db"

    @property
    def credentials(self) -> Path:
        """Accounts with their passwords and API keys; mode 0600."""
        return self.path / "credentials.json"

    @property
    def log(self) -> Path:
        """Log of the server; contains no row texts and no keys."""
        return self.path / "server.log"

    @property
    def state(self) -> Path:
        """JSON with the process id and port of the running server."""
        return self.path / "server.json"

    @property
    def snapshot(self) -> Path:
        """Folder with the copy of the database while a backup is written."""
        return self.path / "backup.tmp"

    @property
    def backup_lock(self) -> Path:
        """Lock held by a process that writes a backup."""
        return self.path / "backup.lock"

    @property
    def running_lock(self) -> Path:
        """Lock held by the server while it runs; the operating system releases it even after ``kill -9``."""
        return self.path / "running.lock"

    @property
    def starting_lock(self) -> Path:
        """Lock held by a process that starts or stops the server or changes its credentials."""
        return self.path / "starting.lock"


def _file_system(path: Path) -> str:
    """Type of the file system of a folder, such as ``ext4``; empty if it is unknown."""
    folder = path.resolve()
    # Of several mounts on one folder, the last one counts.
    kinds = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((kinds[parent] for parent in (folder, *folder.parents) if parent in kinds), "")
