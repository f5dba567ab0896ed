"""Output of commands: tables for people, or one JSON object with ``--json``."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

json_option: Callable[..., Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of text."
)


def echo_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object to standard output."""
    # ASCII only, so that the output survives any terminal encoding and lone surrogates.
    click.echo(json.dumps(value, ensure_ascii=True, indent=2))


def echo_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, limit: int | None = None
) -> None:
    """Print a table; cells are never interpreted as markup, and control characters are replaced.

    Args:
        title: Title of the table.
        columns: Names of the columns.
        rows: Cells of each row.
        limit: Most rows printed; the number of the others is printed below the table. Default: all are printed.
    """
    rows = list(rows)
    table = Table(*columns, title=title, title_justify="left", title_style="bold")
    for row in rows[:limit]:
        table.add_row(*(Text(visible(str(cell))) for cell in row))
    Console().print(table)
    if limit is not None and len(rows) > limit:
        click.echo(f"and {len(rows) - limit:,} more")


def counted(number: int, noun: str) -> str:
    """Format a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def visible(text: str) -> str:
    """Replace control characters and lone surrogates, so that row text cannot control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
