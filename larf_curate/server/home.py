"""The folder of the embedded server: paths of its database, credentials, log, state and locks."""

from dataclasses import dataclass
from pathlib import Path

from larf_curate.files import data_folder, former_folders
from larf_curate.server.locks import is_locked


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
        """Create the folder with mode 0700."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def database(self) -> Path:
        """Argilla's SQLite database: datasets, records, responses and users."""
        return self.path / "argilla.db"

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
    def running_lock(self) -> Path:
        """Lock held by the server while it runs; the operating system releases it even after ``kill -9``."""
        return self.path / "running.lock"

    @property
    def starting_lock(self) -> Path:
        """Lock held by a process that starts or stops the server or changes its credentials."""
        return self.path / "starting.lock"
