"""Which queue on which server: the options of every review command, and the folder that was pushed to it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.options import FOLDER
from larf_curate.errors import InputError, ReviewServerError

if TYPE_CHECKING:
    from larf_curate.review import ReviewQueue


@dataclass(frozen=True, kw_only=True)
class QueueAddress:
    """Which queue on which server, as the options say.

    Args:
        name: Name of the queue.
        workspace: Workspace of the server.
        url: Address of the server.
        api_key_file: File with the key.
        home: Home of the server that ``review up`` started.
    """

    name: str
    workspace: str
    url: str | None
    api_key_file: Path | None
    home: Path | None

    def open(self, *, annotators: int = 1) -> "ReviewQueue":
        """Connect; without address and key to the server that ``review up`` started.

        Args:
            annotators: How many people must decide each row of a queue that is created.
        """
        from larf_curate.review import ReviewQueue  # Argilla's client takes a second to import: not for --help

        url, key = self.url, _read_key(self.api_key_file) if self.api_key_file else None
        if url is None and key is None and "ARGILLA_API_KEY" not in os.environ:
            url, key = _embedded(self.home)
        return ReviewQueue(self.name, workspace=self.workspace, url=url, api_key=key, min_submitted=annotators)


def queue_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which queue on which server; the command gets them as one ``address``."""

    @wraps(command)
    def addressed(**given: Any) -> Any:  # noqa: ANN401  the options of the command
        parts = {field.name: given.pop(field.name) for field in fields(QueueAddress)}
        return command(address=QueueAddress(**parts), **given)

    options = (
        click.option("--name", default="larf-review", show_default=True, help="Name of the queue on the server."),
        click.option("--workspace", default="argilla", show_default=True, help="Workspace of the server."),
        click.option("--url", envvar="ARGILLA_API_URL", show_envvar=True, help="Address of the Argilla server."),
        click.option(
            "--api-key-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="File with the API key of an owner or admin; or set ARGILLA_API_KEY.",
        ),
        click.option(
            "--home",
            envvar="LARF_CURATE_ARGILLA_HOME",
            type=FOLDER,
            help="Home of the server that review up started, if it is not the usual one.",
        ),
    )
    wrapped: Callable[..., Any] = addressed
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _read_key(file: Path) -> str:
    if not (key := file.read_text(encoding="utf-8", errors="replace").strip()):
        raise InputError(f"{file} is empty: wanted the API key of an owner or admin")
    return key


def _embedded(home: Path | None) -> tuple[str, str]:
    """Address and key of the server that ``review up`` started."""
    from larf_curate.server import EmbeddedServer

    server = EmbeddedServer(home)
    state = server.status()
    if state.url is None:
        option = f" --home {home}" if home else ""
        raise ReviewServerError(
            f"no server of {server.home.path} is running: start it with: larf-curate review up{option} --detach; or "
            "give --home of another, or --url and a key"
        )
    return state.url, server.api_key


def remember(queue: "ReviewQueue", selection: Path) -> None:
    """Note which folder was pushed to a queue last."""
    from larf_curate.files import write_json

    write_json(_memory(queue), {"queue": repr(queue), "selection": str(selection.resolve())})


def remembered(queue: "ReviewQueue") -> Path:
    """The folder that was pushed to a queue last from this machine.

    Raises:
        InputError: If there is none.
    """
    from larf_curate.files import read_json

    if not _memory(queue).exists():
        raise InputError(
            f"no selection was pushed to {queue!r} from this machine: name the folder, review pull SEL -o DEC"
        )
    return Path(read_json(_memory(queue))["selection"])


def _memory(queue: "ReviewQueue") -> Path:
    """The file that remembers which folder was pushed to a queue."""
    from larf_curate.files import data_folder

    return data_folder("queues") / f"{queue.dataset_id}.json"
