"""Journal of an unfinished scoring run: the digest of each shard, from the moment at which it is complete.

It has one file per shard and content, in a hidden folder beside the shards: several processes write it, also on
machines that share the folder, and none changes what another has written. A note in it tells that a process which
scored has died, after which rows are scored in worker processes only. The manifest replaces it when the run finishes.
"""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import TypedDict

from larf_curate.errors import InputError
from larf_curate.files import sha256, write_first_json
from larf_curate.manifests import PLAN, ShardRecord
from larf_curate.records import STRICT, read_sealed, seal
from larf_curate.scoring.run_store import store_of

JOURNAL = ".journal"
"""Name of the folder of the journal."""
PARTS = "parts"
"""Name of the folder in it for rows of unfinished shards; see `larf_curate.scoring.parts`."""
CRASH = "crash-"
"""Beginning of the names of files in it that note that a process which scored has died."""
REMEDY = "its rows are scored again"


class Entry(TypedDict):
    """A complete shard, and the digest of the plan of the run that it belongs to."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    shard: ShardRecord
    plan: str
    digest: str


def record_shard(folder: Path, shard: ShardRecord, *, plan: str) -> None:
    """Record a shard that is written completely, before it gets its name.

    Args:
        folder: Folder of the run.
        shard: The shard, with its future name.
        plan: Hex SHA-256 of the plan with which it was scored.
    """
    store = store_of(folder)
    if store and "/" not in shard["file"]:  # rows of unfinished shards stay on this machine
        store.record(shard, plan=plan, entry=json.dumps(seal({"shard": shard, "plan": plan})).encode())
        return
    # Not the name of the shard alone: other processes may score the same rows, on other hardware to other last digits.
    name = hashlib.sha256(f"{plan} {shard['sha256']} {shard['file']}".encode("utf-8", "surrogateescape")).hexdigest()
    path = _journal(folder) / f"{name[:32]}.json"
    entry = _read_entry(path)
    if entry is None or (entry["shard"], entry["plan"]) != (shard, plan):  # damaged, or another one under its name
        path.unlink(missing_ok=True)
    write_first_json(path, seal({"shard": shard, "plan": plan}))


def read_journal(folder: Path) -> dict[str, list[ShardRecord]]:
    """Read the recorded shards of the run in a folder.

    Returns:
        Records by file name: several if processes scored the same rows to different content. Entries that are damaged
        or of another run are omitted.
    """
    plan = sha256(folder / PLAN)
    entries = [_read_entry(path) for path in _journal(folder).glob("*.json") if not path.name.startswith(".")]
    records = defaultdict(list)
    for entry in entries:
        if entry and entry["plan"] == plan:
            records[entry["shard"]["file"]].append(entry["shard"])
    return dict(records)


def remove_journal(folder: Path) -> None:
    """Remove the journal of a run whose manifest is written."""
    shutil.rmtree(folder / JOURNAL, ignore_errors=True)


def parts_folder(folder: Path, name: str) -> Path:
    """Folder in the journal for the saved rows of a shard.

    Args:
        folder: Folder of the run.
        name: Name of the piece whose shard it is.

    Raises:
        InputError: If a folder on the way is a link.
    """
    parts = _no_link(_journal(folder) / PARTS)
    return _no_link(parts / name)


def note_crash(folder: Path, run: str) -> None:
    """Note that a process which scored has died, until the run finishes.

    Args:
        folder: Folder of the run.
        run: Part of the name of the note, since other processes may make or remove theirs.
    """
    if store := store_of(folder):
        store.note_crash(run)
        return
    _journal(folder).mkdir(exist_ok=True)
    _note(folder, run).touch()


def has_crashed(folder: Path) -> bool:
    """Whether a process that scored for the run has died, or may yet: another scores into the folder now."""
    store = store_of(folder)
    return bool(store.crashes()) if store else any(_journal(folder).glob(f"{CRASH}*"))


@contextmanager
def crash_noted(folder: Path, run: str) -> Iterator[None]:
    """Note in advance that this process dies: a crash leaves no time for it. Any other end removes the note."""
    note_crash(folder, run)
    try:
        yield
    finally:
        if store := store_of(folder):
            store.forget_crash(run)
        else:
            _note(folder, run).unlink(missing_ok=True)


def _note(folder: Path, run: str) -> Path:
    return _journal(folder) / f"{CRASH}{run}"


def _journal(folder: Path) -> Path:
    """Folder of the journal."""
    return _no_link(folder / JOURNAL)


def _no_link(path: Path) -> Path:
    """The same path.

    Raises:
        InputError: If it is a link, through which another folder would be written to.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link, wanted a folder: remove it")
    return path


def _read_entry(path: Path) -> Entry | None:
    try:
        return read_sealed(path, Entry, remedy=REMEDY)
    except InputError:  # the same as a shard that was never recorded
        return None
