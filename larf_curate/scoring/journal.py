"""Journal of an unfinished scoring run: the digest of each shard, from the moment at which it is complete.

It has one file per shard, since several worker processes write it, in a hidden folder beside the shards; and a note if
a process that scored has died, after which rows are scored in worker processes only. The manifest replaces it when the
run finishes.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import TypedDict

from larf_curate.errors import InputError
from larf_curate.files import sha256
from larf_curate.manifests import PLAN, ShardRecord
from larf_curate.records import STRICT, read_sealed, write_sealed

JOURNAL = ".journal"
"""Name of the folder of the journal."""
CRASH = "crash"
"""Name of the file in it that notes that a process which scored has died."""
REMEDY = "its rows are scored again"


class Entry(TypedDict):
    """A complete shard, and the digest of the plan of the run that it belongs to."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    shard: ShardRecord
    plan: str
    digest: str


def record_shard(folder: Path, name: str, *, rows: int, size: int, digest: str) -> None:
    """Record a shard that is written completely, before it gets its name.

    Args:
        folder: Folder of the run.
        name: Future file name of the shard.
        rows: Its number of rows.
        size: Its size in bytes.
        digest: Its hex SHA-256.
    """
    shard = {"file": name, "rows": rows, "bytes": size, "sha256": digest}
    write_sealed(_journal(folder) / f"{name}.json", {"shard": shard, "plan": sha256(folder / PLAN)})


def read_journal(folder: Path) -> dict[str, ShardRecord]:
    """Recorded shards of the run in a folder, by file name; entries that are damaged or of another run are omitted."""
    plan = sha256(folder / PLAN)
    entries = [_read_entry(path) for path in _journal(folder).glob("*.json") if not path.name.startswith(".")]
    return {entry["shard"]["file"]: entry["shard"] for entry in entries if entry and entry["plan"] == plan}


def remove_journal(folder: Path) -> None:
    """Remove the journal of a run whose manifest is written."""
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def note_crash(folder: Path) -> None:
    """Note that a process which scored has died, until the run finishes."""
    _journal(folder).mkdir(exist_ok=True)
    (_journal(folder) / CRASH).touch()


def has_crashed(folder: Path) -> bool:
    """Whether a process that scored for the run has died."""
    return (_journal(folder) / CRASH).exists()


@contextmanager
def crash_noted(folder: Path) -> Iterator[None]:
    """Note in advance that this process dies: a crash leaves no time for it. Any other end removes the note."""
    note_crash(folder)
    try:
        yield
    finally:
        (_journal(folder) / CRASH).unlink(missing_ok=True)


def _journal(folder: Path) -> Path:
    """Folder of the journal.

    Raises:
        InputError: If it is a link, through which another folder would be written to.
    """
    path = folder / JOURNAL
    if path.is_symlink():
        raise InputError(f"{path} is a link, wanted a folder: remove it")
    return path


def _read_entry(path: Path) -> Entry | None:
    try:
        return read_sealed(path, Entry, remedy=REMEDY)
    except InputError:  # the same as a shard that was never recorded
        return None
