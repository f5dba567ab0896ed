"""Options that several commands share, and how their values are read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
EXISTING_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

device_option: Decorator = click.option(
    "--device", help="Torch device, such as cpu, cuda:0 or mps.  [default: the first accelerator there is]"
)
max_length_option: Decorator = click.option(
    "--max-length", type=click.IntRange(min=8), default=4096, show_default=True, help="Longest conversation in tokens."
)


def read_columns(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, str] | None:
    """``user=question,assistant=answer`` as a dict; a callback for click."""
    if value is None:
        return None
    pairs = [item.partition("=") for item in value.split(",")]
    if not all(role and column for role, _, column in pairs):
        raise click.BadParameter("wanted role=column pairs, as in user=question,assistant=answer", ctx, param)
    return {role.strip(): column.strip() for role, _, column in pairs}


def read_layers(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> "list[int] | Literal['all', 'auto'] | None":
    """``9,14`` as block numbers; ``all``, None and, where it is the default, ``auto`` as they are; a click callback."""
    if value is None:
        return None
    if value == "all":
        return "all"
    if value == "auto" and param.default == "auto":
        return "auto"
    try:
        return [int(item) for item in value.split(",")]
    except ValueError:
        raise click.BadParameter("wanted block numbers from 0 on, as in 9,14, or all", ctx, param) from None
