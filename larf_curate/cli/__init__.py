"""The command line: each command parses, calls the library and prints."""

import importlib

import click

from larf_curate.cli.output import visible
from larf_curate.errors import InputError, LarfCurateError
from larf_curate.version import __version__

COMMANDS = {
    "demo": "demo",
    "layers": "layers",
    "profile": "profile",
    "diagnose": "diagnose",
    "score": "score",
    "explain": "explain",
    "select": "select",
    "report": "report",
    "review": "review",
    "publish": "publish",
    "train": "training",
    "evaluate": "training",
    "verify": "training",
}
"""Command by module of this package; modules load when their command is asked for."""


class CommandError(click.ClickException):
    """An error of the library as one line on standard error; exit code 1."""

    def __init__(self, error: Exception) -> None:
        super().__init__(visible(" ".join(str(error).split())))


class UnusableInputError(CommandError):
    """The same for what the user gave; exit code 2, as for wrong usage."""

    exit_code = 2


class LazyGroup(click.Group):
    """A group whose commands are imported at first use, and whose errors are clean."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the data flow."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"{__name__}.{COMMANDS[cmd_name]}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; the library's errors and those of the file system become one line."""
        try:
            return super().invoke(ctx)
        except (LarfCurateError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            raise (UnusableInputError if isinstance(error, InputError) else CommandError)(error) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="larf-curate")
def main() -> None:
    """Find the rows of a fine-tuning dataset that would break a model's safety, review them, publish what is kept.

    New here? Run `larf-curate demo`.
    """
