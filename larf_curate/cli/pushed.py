"""Records of which selection was last pushed to each queue, or exported, from this machine."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from larf_curate.errors import InputError
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.remote import is_url, public_name

if TYPE_CHECKING:
    from larf_curate.review import ReviewQueue

PULL = "review pull SEL -o DEC"
FILES = "files"
"""Name of the record of the selection that was last exported to a file; ids of queues are longer."""


class QueueRecord(TypedDict):
    """The folder that was last pushed to a queue, and the queue in words."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    queue: str
    selection: str
    digest: str


def pushed_to(queues: Mapping[str, str], selection: Path | str | None) -> list[str]:
    """Names of the queues that were pushed to from this machine, those of this selection if it is given; latest first.

    Args:
        queues: Ids of datasets on the server by name.
        selection: The folder that was pushed, or its URL.
    """
    times = {}
    for name, dataset in queues.items():
        file = _record_file(dataset)
        if file.exists() and (selection is None or _recorded(file) == _folder_name(selection)):
            times[name] = file.stat().st_mtime_ns
    return sorted(times, key=lambda name: -times[name])


def remember(queue: "ReviewQueue", selection: Path | str) -> None:
    """Record which folder was last pushed to a queue."""
    # By id, not by name: a deleted queue of the same name on another server is a different one.
    remember_as(queue.dataset_id, selection, queue=repr(queue))


def remember_as(name: str, selection: Path | str, *, queue: str = "") -> None:
    """Record which folder was last pushed or exported.

    Args:
        name: Id of the queue, or `FILES`.
        selection: The folder or its URL.
        queue: The queue in words; default: the name.
    """
    write_sealed(_record_file(name), {"queue": queue or name, "selection": _folder_name(selection)})


def remembered(queue: "ReviewQueue") -> Path | str:
    """The folder, or its URL, that was last pushed to a queue from this machine.

    Raises:
        InputError: If there is none, or its record is damaged.
    """
    return remembered_as(queue.dataset_id, PULL, of=f"pushed to {queue!r}")


def remembered_as(name: str, command: str, *, of: str = "exported") -> Path | str:
    """The folder, or its URL, that `remember_as` recorded.

    Args:
        name: Id of the queue, or `FILES`.
        command: A command that names the folder, for the remedy.
        of: What was done with the selection, for the message.

    Raises:
        InputError: If there is none, or its record is damaged.
    """
    if not _record_file(name).exists():
        raise InputError(f"no selection was {of} from this machine: name its folder, as in {command}")
    folder = _recorded(_record_file(name), command)
    return folder if is_url(folder) else Path(folder)


def _recorded(file: Path, command: str = PULL) -> str:
    """The folder, or its URL, in a file that `remember_as` wrote."""
    return read_sealed(file, QueueRecord, remedy=f"name the folder of the selection, as in {command}")["selection"]


def _folder_name(selection: Path | str) -> str:
    """A selection as it is recorded."""
    return public_name(selection) if is_url(selection) else str(Path(selection).resolve())


def missing_selections(records: Iterable[Path]) -> list[str]:
    """Folders that records of queues name, which are not on this machine.

    Raises:
        InputError: If a record is damaged.
    """
    found = [read_sealed(record, QueueRecord, remedy="remove it")["selection"] for record in records]
    return [folder for folder in dict.fromkeys(found) if not is_url(folder) and not Path(folder).is_dir()]


def records_folder() -> Path:
    """The folder of the records which folder was last pushed to each queue."""
    from larf_curate.files import data_folder

    return data_folder("queues")


def _record_file(name: str) -> Path:
    """The file that records which folder was last pushed to a queue or exported."""
    return records_folder() / f"{name}.json"
