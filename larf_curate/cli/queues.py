"""Options of all review commands: the queue and its server, and the selection last pushed to each queue."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import TypedDict

from larf_curate.cli.options import FOLDER
from larf_curate.errors import InputError, ReviewServerError
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.remote import is_url, public_name

if TYPE_CHECKING:
    from larf_curate.review import ReviewQueue
    from larf_curate.scoring.selection import Selection


DEFAULT_WORKSPACE = "argilla"
UNNAMED = "larf-review"
"""Name of the queue for rows whose dataset and profile are not known."""
MAX_NAMES = 5
"""Names of queues that a message lists."""
PULL = "review pull SEL -o DEC"
FILES = "files"
"""Name of the record of the selection that was last exported to a file; ids of queues are longer."""


class QueueRecord(TypedDict):
    """The folder that was last pushed to a queue, and the queue in words."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    queue: str
    selection: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class QueueAddress:
    """A queue and its server, as given by the options.

    Args:
        name: Name of the queue, an Argilla dataset; None for the one that `find` finds.
        workspace: Workspace of the server.
        url: URL of the server; None for the embedded one.
        api_key_file: File with the API key; None for ``ARGILLA_API_KEY`` or the embedded server's key.
        home: Home of the embedded server; None for the default one.
    """

    name: str | None
    workspace: str
    url: str | None
    api_key_file: Path | None
    home: Path | None

    def given(self) -> list[str]:
        """The options that lead another review command to this queue, without those that have their defaults."""
        options = {f"--{field.name.replace('_', '-')}": getattr(self, field.name) for field in fields(self)}
        defaults = (None, DEFAULT_WORKSPACE)
        return [part for name, value in options.items() if value not in defaults for part in (name, str(value))]

    @property
    def is_embedded(self) -> bool:
        """Whether the server is the one that ``review up`` started."""
        # A key in the environment belongs to another server.
        return self.url is None and self.api_key_file is None and "ARGILLA_API_KEY" not in os.environ

    def public_urls(self) -> tuple[str, ...]:
        """URLs at which other machines reach the embedded server; empty if they cannot, or for another server."""
        from larf_curate.server import EmbeddedServer

        return EmbeddedServer(self.home).status().public_urls if self.is_embedded else ()

    def create(self, selection: Path | str, loaded: "Selection", *, annotators: int = 1) -> "ReviewQueue":
        """Connect to the queue for a selection, which may be a new one.

        Without a name it is the one that has its rows already, if it was pushed from this machine, else one that is
        named after its dataset and profile.

        Args:
            selection: The folder of the selection, or its URL.
            loaded: The selection.
            annotators: Number of people who must decide each row, if the queue is created.

        Raises:
            ReviewServerError: If the server is not running or cannot be reached.
        """
        from larf_curate.review.identity import Identity

        identity = Identity.of(loaded.scored)
        default = self._opened(self.name or (identity.name if identity else UNNAMED), annotators)
        if self.name is not None:
            return default
        rows = set(loaded.flagged.with_format(None)["larf_row_id"][:])
        with _closed_on_errors(default):
            for name in _pushed(default.queues(), selection):
                if name != default.name and rows.intersection((earlier := default.named(name)).row_ids()):
                    return _told(earlier, f"which has rows of {public_name(selection)} already")
        return default

    def find(self, selection: Path | str | None = None) -> "ReviewQueue":
        """Connect to a queue that is there.

        Without a name it is the one that the selection was pushed to; without a selection, the one that was last pushed
        to from this machine, or the only one of the server. It is told which.

        Args:
            selection: The folder of the selection that was pushed, or its URL.

        Raises:
            InputError: If several queues are there, and nothing tells which one is meant.
            ReviewServerError: If the server is not running or cannot be reached.
        """
        server = self.server()
        if self.name is not None:
            return server
        with _closed_on_errors(server):
            return _found(server, selection)

    def server(self) -> "ReviewQueue":
        """Connect to the server, whichever queue is meant."""
        return self._opened(self.name or UNNAMED)

    def _opened(self, name: str, annotators: int = 1) -> "ReviewQueue":
        """Connect; without URL and key, to the embedded server that ``review up`` started."""
        from larf_curate.review import ReviewQueue  # Argilla's client takes a second to import: not for --help

        url, key = self.url, _read_key(self.api_key_file) if self.api_key_file else None
        if self.is_embedded:
            url, key = _embedded(self.home)
        return ReviewQueue(name, workspace=self.workspace, url=url, api_key=key, min_submitted=annotators)


def queue_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `QueueAddress` to a command, which receives them as one argument ``address``."""

    @wraps(command)
    def addressed(**given: Any) -> Any:  # noqa: ANN401  the options of the command
        parts = {field.name: given.pop(field.name) for field in fields(QueueAddress)}
        return command(address=QueueAddress(**parts), **given)

    options = (
        click.option(
            "--name",
            help="Name of the queue on the server.  [default: that of the selection, by its dataset and profile, or "
            "the one last pushed to]",
        ),
        click.option("--workspace", default=DEFAULT_WORKSPACE, show_default=True, help="Workspace of the server."),
        click.option("--url", envvar="ARGILLA_API_URL", show_envvar=True, help="URL of the Argilla server."),
        click.option(
            "--api-key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File with the API key of an owner or admin, instead of ARGILLA_API_KEY.",
        ),
        click.option(
            "--home",
            envvar="LARF_CURATE_ARGILLA_HOME",
            type=FOLDER,
            help="Home of the server that review up started.  [default: argilla in the platform's data folder]",
        ),
    )
    wrapped: Callable[..., Any] = addressed
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _read_key(file: Path) -> str:
    """The API key in a file."""
    if not (key := file.read_text(encoding="utf-8", errors="replace").strip()):
        raise InputError(f"{file} is empty: wanted the API key of an owner or admin")
    return key


def _embedded(home: Path | None) -> tuple[str, str]:
    """URL and API key of the server that ``review up`` started."""
    from larf_curate.server import EmbeddedServer

    server = EmbeddedServer(home)
    state = server.status()
    if state.url is None:
        option = f" --home {home}" if home else ""
        raise ReviewServerError(
            f"no server of {server.home.path} is running: start it with larf-curate review up{option} --detach, or "
            "give --home of another one, or --url and a key"
        )
    return state.url, server.api_key


@contextmanager
def _closed_on_errors(queue: "ReviewQueue") -> Iterator[None]:
    """Close a connection that nobody gets."""
    try:
        yield
    except BaseException:
        queue.close()
        raise


def _found(server: "ReviewQueue", selection: Path | str | None) -> "ReviewQueue":
    """The queue that a command means which names none."""
    queues = server.queues()
    pushed = _pushed(queues, selection)
    if not pushed and selection is not None:
        pushed = [name for name in [_default_name(selection)] if name in queues]
    if pushed and len(queues) > 1:
        why = "the one last pushed to" if selection is None else "which has its rows"
        return _told(server.named(pushed[0]), why)
    if len(queues) > 1:
        raise InputError(f"{len(queues)} queues are on {server.server_url}: choose one with --name {_names(queues)}")
    found = server.named(next(iter(queues), UNNAMED))  # without any, the first request says what to do
    return found if pushed or not queues else _told(found, "the only one of the server")


def _told(queue: "ReviewQueue", why: str) -> "ReviewQueue":
    """Say which queue was found, but for ``--json``, which has it in its object."""
    context = click.get_current_context(silent=True)
    if context is None or not context.params.get("as_json"):
        click.echo(f"Queue {queue.name}, {why}", err=True)
    return queue


def _pushed(queues: Mapping[str, str], selection: Path | str | None) -> list[str]:
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


def _default_name(selection: Path | str) -> str | None:
    """Name of the queue for a selection, if it was not chosen; None if its folder does not tell."""
    from larf_curate.manifests import SELECTION, read_manifest
    from larf_curate.remote import local_copy
    from larf_curate.review.identity import Identity

    identity = Identity.of(read_manifest(local_copy(selection), SELECTION)["scored"])
    return identity.name if identity else None


def _names(queues: Iterable[str]) -> str:
    shown = list(queues)
    more = f" or one of {len(shown) - MAX_NAMES} more (larf-curate review list)" if len(shown) > MAX_NAMES else ""
    return " or ".join(shown[:MAX_NAMES]) + more


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


def _read_merge(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Click callback: check the name of a rule."""
    from larf_curate.review.decisions.merge import MergeRule  # Argilla's client takes a second to import

    try:
        MergeRule.parse(value)
    except InputError as error:
        raise click.BadParameter(str(error), ctx, param) from error
    return value


merge_option = click.option(
    "--merge",
    default="majority",
    show_default=True,
    metavar="RULE",
    callback=_read_merge,
    help="How several answers are merged: majority, unanimous or arbiter:USERNAME.",
)
"""Option that names the rule of `MergeRule`."""
