"""Where the embedded server keeps its things: one folder for the data, one beside it for the programs."""

from dataclasses import dataclass
from pathlib import Path

from larf_curate.files import data_folder, former_folders
from larf_curate.server.locks import is_locked


@dataclass(frozen=True)
class ServerHome:
    """The files of one embedded server.

    Args:
        path: The folder; it holds the database, the credentials and the log, and is readable by its owner only.
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
        """Create the folder, closed to other users."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def database(self) -> Path:
        """Argilla's own SQLite database: datasets, records, responses, users."""
        return self.path / "argilla.db"

    @property
    def credentials(self) -> Path:
        """Accounts with their passwords and keys; mode 0600."""
        return self.path / "credentials.json"

    @property
    def log(self) -> Path:
        """What the server says; never row text, never keys."""
        return self.path / "server.log"

    @property
    def state(self) -> Path:
        """Process id and port of the running server."""
        return self.path / "server.json"

    @property
    def running_lock(self) -> Path:
        """Held by the server for as long as it lives; the system frees it even after kill -9."""
        return self.path / "running.lock"

    @property
    def starting_lock(self) -> Path:
        """Held by whoever starts or stops the server."""
        return self.path / "starting.lock"
