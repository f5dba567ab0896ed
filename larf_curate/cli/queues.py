"""Options of all review commands: the queue and its server, and which queue is meant if none is named."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.options import FOLDER
from larf_curate.cli.pushed import pushed_to
from larf_curate.errors import InputError, ReviewServerError
from larf_curate.remote import public_name

if TYPE_CHECKING:
    from larf_curate.review import ReviewQueue
    from larf_curate.scoring.selection import Selection


DEFAULT_WORKSPACE = "argilla"
UNNAMED = "larf-review"
"""Name of the queue for rows whose dataset and profile are not known."""
MAX_NAMES = 5
"""Names of queues that a message lists."""


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
            for name in pushed_to(default.queues(), selection):
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
    pushed = pushed_to(queues, selection)
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
