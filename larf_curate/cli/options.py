"""Options shared by several commands, and callbacks that parse option values."""

import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import click

from larf_curate.remote import is_url, public_name


class NewPath(click.Path):
    """A path to write to, whose name is UTF-8: results and messages name it.

    Args:
        urls: Whether a URL may be given instead, which stays a string.
        options: Arguments of `click.Path`.
    """

    def __init__(self, *, urls: bool = False, **options: Any) -> None:  # noqa: ANN401  as in click
        super().__init__(path_type=Path, **options)
        self.urls = urls

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  as in click
        """Convert an option's value to a path."""
        name = os.fsdecode(value)
        if is_url(name):
            if self.urls:
                return name
            self.fail(f"wanted a path, got {public_name(name)}: write to this machine, then copy it", param, ctx)
        if not name.isascii() and name != name.encode("utf-8", "ignore").decode():
            self.fail(f"wanted a name in UTF-8, got {ascii(name)}: give another name", param, ctx)
        return super().convert(value, param, ctx)


class ExistingPath(click.Path):
    """The path of something that is read, or a URL, which stays a string."""

    def convert(self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  as in click
        """Convert an argument's value to a path."""
        return value if is_url(value) else super().convert(value, param, ctx)


class FiniteNumber(click.types.FloatParamType):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  as in click
        """Convert an option's value to a number."""
        if not math.isfinite(number := super().convert(value, param, ctx)):
            self.fail(f"wanted a finite number, got {value}", param, ctx)
        return number


class FiniteRange(click.FloatRange, FiniteNumber):
    """A range of finite numbers: NaN compares as within every range."""


FOLDER = NewPath(file_okay=False)
FOLDER_OR_URL = NewPath(file_okay=False, urls=True)
EXISTING_FOLDER = ExistingPath(exists=True, file_okay=False, path_type=Path)
READ_FOLDER = ExistingPath(file_okay=False, path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

device_option: Decorator = click.option(
    "--device", help="Torch device, such as cpu, cuda:0 or mps.  [default: the first available accelerator]"
)
max_length_option: Decorator = click.option(
    "--max-length", type=click.IntRange(min=8), default=4096, show_default=True, help="Longest conversation in tokens."
)


side_option: Decorator = click.option(
    "--side",
    type=click.Choice(("chosen", "rejected")),
    help="Which answer of preference data to read.  [default: chosen]",
)


def read_columns(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, str] | None:
    """Click callback: parse ``user=question,assistant=answer,role:narrator=user`` into a dict."""
    if value is None:
        return None
    pairs = [item.partition("=") for item in value.split(",")]
    if not all(role and column for role, _, column in pairs):
        raise click.BadParameter("wanted role=column pairs, for example user=question,assistant=answer", ctx, param)
    named = {role.strip(): column for role, _, column in pairs}
    return {role: unescaped(text) if role == "input_separator" else text.strip() for role, text in named.items()}


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which rows of a dataset are scored, and how their columns are read."""
    options = (
        click.option("--split", help="Split, if the dataset has several."),
        click.option("--config", help="Configuration, if a Hub dataset or folder has several."),
        click.option("--revision", help="Commit, tag or branch of a Hub dataset."),
        click.option(
            "--columns", callback=read_columns, help="Column names by role, for example user=question,assistant=answer."
        ),
        side_option,
        click.option(
            "--limit", type=click.IntRange(min=1), help="Number of rows to score, from the beginning.  [default: all]"
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def read_share(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Click callback: parse ``I/N`` into the number of a process, from 0, and the number of processes."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", value, re.ASCII)
    if not found or not int(found[1]) < int(found[2]):
        wanted = "wanted I/N with I from 0 to N-1, for example 0/4, 1/4, 2/4 and 3/4 for four processes"
        raise click.BadParameter(f"{wanted}, got {value!r}", ctx, param)
    return int(found[1]), int(found[2])


def unescaped(text: str) -> str:
    """Text with line breaks and tabs written as ``\\n``, ``\\r`` and ``\\t``, and backslashes as two."""
    characters = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nrt\\])", lambda found: characters[found[1]], text)


def _skip_verification(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Click callback of `no_verify_option`: nothing is verified until the command ends."""
    if value:
        from larf_curate.verification import without_verification

        ctx.with_resource(without_verification())


no_verify_option = click.option(
    "--no-verify",
    is_flag=True,
    expose_value=False,
    callback=_skip_verification,
    help="Do not compare files with their recorded digests.",
)


def columns_to_read(
    available: Sequence[str], columns: dict[str, str] | None, side: str | None
) -> dict[str, str] | None:
    """Column names by role from ``--columns`` or ``--side``; None if neither is given.

    Raises:
        click.UsageError: If both are given.
        ConversationError: If the dataset does not have the side.
    """
    from larf_curate.conversation.schemas import columns_of_side

    if columns and side:
        raise click.UsageError("--side cannot be combined with --columns: name the answer's column there")
    return columns_of_side(available, side) if side else columns


def read_layers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> "list[int] | Literal['all', 'auto'] | None":
    """Click callback: parse ``9,14`` into block numbers; ``all`` and, where it is the default, ``auto`` are kept."""
    if value is None:
        return None
    if value == "all":
        return "all"
    # The demo shares this callback but does not choose layers automatically.
    if value == "auto" and param.default == "auto":
        return "auto"
    try:
        return [int(item) for item in value.split(",")]
    except ValueError:
        raise click.BadParameter("wanted block numbers from 0, for example 9,14, or all", ctx, param) from None
