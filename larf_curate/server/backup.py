"""Back up a server's home to one file, also while the server runs.

Every answer that the server has acknowledged before is in it. The search index and the log are not; the index is built
anew.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.files import prepare_to_write
from larf_curate.server.archive import CREDENTIALS, DATABASE, Manifest, is_archive, write_archive
from larf_curate.server.credentials import read_credentials, write_credentials
from larf_curate.server.environment import SERVER_VERSION
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import locked
from larf_curate.server.snapshot import copy_database, inspect_database
from larf_curate.version import __version__

_LOCK_TIMEOUT = 180.0  # seconds


def back_up(home: ServerHome, target: Path, *, queues: Path) -> Manifest:
    """Write a backup of a home; its server may run and be used meanwhile.

    Args:
        home: The home.
        target: File to write, with mode 0600; an older backup of this name is replaced when the new one is complete.
        queues: Folder with the records of queues, of which those of this home's datasets are added.

    Raises:
        InputError: If the target exists and is no backup.
        ReviewServerError: If the home has no data, or its database is damaged or cannot be copied.
    """
    if not home.database.exists():
        raise ReviewServerError(f"no server was started on {home.path} yet: there is nothing to back up")
    home.make()
    prepare_to_write(target)
    if target.exists() and not is_archive(target):
        raise InputError(f"{target} exists and is no backup: give another name, nothing was written")
    with _snapshot_folder(home) as folder:
        # Under the lock of those who change accounts: the accounts of the file are then those of the database.
        with locked(home.starting_lock, timeout=_LOCK_TIMEOUT):
            created = datetime.now(UTC).isoformat(timespec="seconds")
            copy_database(home.database, folder / DATABASE)
            write_credentials(folder / CREDENTIALS, read_credentials(home.credentials))
        content = inspect_database(folder / DATABASE, remedy="see `larf-curate review doctor`; no backup was written")
        records = {f"queues/{dataset}.json": queues / f"{dataset}.json" for dataset in content.datasets}
        files = {name: folder / name for name in (DATABASE, CREDENTIALS)}
        files |= {name: path for name, path in records.items() if path.is_file()}
        manifest = Manifest(
            larf_curate=__version__,
            argilla_server=SERVER_VERSION,
            schema=content.schema,
            created=created,
            counts=content.counts,
        )
        return write_archive(target, files, manifest)


@contextmanager
def _snapshot_folder(home: ServerHome) -> Iterator[Path]:
    """A private folder in the home, without what a killed backup has left in it, and removed afterwards."""
    folder = home.snapshot
    with locked(home.backup_lock, timeout=_LOCK_TIMEOUT):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
