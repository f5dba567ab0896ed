"""The command line: each command parses its options, calls the library and prints the result."""

import errno
import importlib
import os
import sys
import warnings

import click

from larf_curate.cli.output import visible
from larf_curate.errors import InputError, LarfCurateError
from larf_curate.remote import with_urls
from larf_curate.urls import without_credentials
from larf_curate.version import __version__

COMMANDS = (
    "demo",
    "scan",
    "init",
    "run",
    "layers",
    "profile",
    "diagnose",
    "preview",
    "score",
    "explain",
    "select",
    "report",
    "review",
    "publish",
    "train",
    "evaluate",
    "verify",
)
"""Commands in the order in which data passes through them; the module of this name is imported when one is used."""


ADVICE = {
    errno.EACCES: "give a place that you may write to, or change its permissions",
    errno.EEXIST: "give another name, or remove what has this one",
    errno.EISDIR: "it is a folder; give the name of a file",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ENOSPC: "free disk space, or give a place on another disk",
    errno.ENOTDIR: "a part of the path is a file; give a folder",
    errno.EROFS: "give a place on another disk",
}
"""What to do about errors of the file system."""


class CommandError(click.ClickException):
    """A library error, shown as one line on standard error; exit code 1."""

    def __init__(self, error: Exception) -> None:
        super().__init__(visible(without_credentials(with_urls(" ".join(_message(error).split())))))


class UnusableInputError(CommandError):
    """An error in the user's input; exit code 2, as for wrong usage."""

    exit_code = 2


def _message(error: Exception) -> str:
    """The message of an error; of the file system's, with what to do instead of its number."""
    if not isinstance(error, OSError) or error.errno not in ADVICE:
        return str(error)
    return f"cannot use {error.filename or 'a file'} ({os.strerror(error.errno)}): {ADVICE[error.errno]}"


class LazyGroup(click.Group):
    """A command group that imports commands on first use and shows errors without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Command names in the order in which data passes through them, not alphabetically."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; None if there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; errors of the library and of the file system become one line."""
        try:
            with warnings.catch_warnings():
                if not sys.warnoptions:  # what libraries will change concerns us, not the user
                    warnings.simplefilter("ignore", FutureWarning)
                return super().invoke(ctx)
        except (LarfCurateError, OSError) as error:
            if isinstance(error, BrokenPipeError):  # click ends quietly if the reader of a pipe has gone
                raise
            raise (UnusableInputError if isinstance(error, InputError) else CommandError)(error) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="larf-curate")
def main() -> None:
    """Find the rows of a fine-tuning dataset that would break a model's safety, review them, and publish the rest.

    New here? Run `larf-curate demo`.
    """
