"""The command line: each command parses its options, calls the library and prints the result."""

import importlib

import click

from larf_curate.cli.output import visible
from larf_curate.errors import InputError, LarfCurateError
from larf_curate.version import __version__

COMMANDS = (
    "demo",
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


class CommandError(click.ClickException):
    """A library error, shown as one line on standard error; exit code 1."""

    def __init__(self, error: Exception) -> None:
        super().__init__(visible(" ".join(str(error).split())))


class UnusableInputError(CommandError):
    """An error in the user's input; exit code 2, as for wrong usage."""

    exit_code = 2


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
