"""Output of commands: tables for people, or one JSON object with ``--json``."""

import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from larf_curate.remote import public_name

if TYPE_CHECKING:
    from larf_curate.review import Outcome

WITHIN_RUN = "larf_curate.run"
"""Key of the context's `meta` that is set while a command is a step of ``larf-curate run``."""


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``, which the command receives as ``as_json``, and ``--quiet``; neither shows progress bars."""
    options = (
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            is_eager=True,
            callback=_as_json,
            help="Print one JSON object instead of text and progress.",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_quiet,
            help="Print only warnings and errors.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _as_json(ctx: click.Context, _param: click.Parameter, value: bool) -> bool:
    """Click callback of ``--json``: without progress bars until the command ends."""
    if value:
        from larf_curate.progress import no_progress

        ctx.with_resource(no_progress())
    return value


def _quiet(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    """Click callback of ``--quiet``: without progress bars and, but for ``--json``, without standard output."""
    if not value:
        return
    from larf_curate.progress import no_progress

    ctx.with_resource(no_progress())
    if not ctx.params.get("as_json"):
        ctx.with_resource(redirect_stdout(ctx.with_resource(open(os.devnull, "w"))))


def echo_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object to standard output."""
    # ASCII only, so that the output survives any terminal encoding and lone surrogates.
    click.echo(json.dumps(value, ensure_ascii=True, indent=2))


def echo_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, limit: int | None = None
) -> None:
    """Print a table; cells are never cut nor interpreted as markup, and control characters are replaced.

    Args:
        title: Title of the table.
        columns: Names of the columns.
        rows: Cells of each row.
        limit: Most rows printed; the number of the others is printed below the table. Default: all are printed.
    """
    rows = list(rows)
    console = Console()
    shown = [[Text(visible(str(cell))) for cell in row] for row in rows[:limit]]
    headed = (Column(name, overflow="fold") for name in columns)
    table = Table(*headed, title=title, title_justify="left", title_style="bold")
    # Names to copy stay on one line, unless they would leave no room for the rest.
    table.columns[0].no_wrap = all(row[0].cell_len <= console.width // 3 for row in shown)
    for row in shown:
        table.add_row(*row)
    console.print(table)
    if limit is not None and len(rows) > limit:
        click.echo(f"and {len(rows) - limit:,} more")


def echo_decisions(outcome: "Outcome", output: Path | str, *, remedy: str = "") -> None:
    """Print a selection after review: counts, conflicts, where it was written, and what comes next.

    Args:
        outcome: The selection after review.
        output: The folder that it was written to, or its URL.
        remedy: What to do about conflicts.
    """
    echo_table("After review", ("rows", ""), [(key, f"{count:,}") for key, count in outcome.counts.items()])
    if conflicts := outcome.decisions.conflicts():
        lines = [(row.row_id, ", ".join(row.annotators)) for row in conflicts]
        echo_table("Conflicts", ("row", "annotators"), lines, limit=20)
        if remedy:
            click.echo(remedy)
    click.echo(f"Written to {public_name(output)}")
    echo_next("publish", output, "--to", "ORG/NAME", "--dry-run")


def echo_next(*arguments: object) -> None:
    """Print the command that usually comes next, unless ``larf-curate run`` does it."""
    context = click.get_current_context(silent=True)
    if context and context.meta.get(WITHIN_RUN):
        return
    click.echo(f"Next: larf-curate {shlex.join(public_name(str(argument)) for argument in arguments)}")


def counted(number: int, noun: str) -> str:
    """Format a number with its noun, in the plural unless it is 1."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def visible(text: str) -> str:
    """Replace control characters and lone surrogates, so that row text cannot control the terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
