"""Output of a push by expected harm, and of the estimate of how many harmful rows are left."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from larf_curate.cli.output import counted
from larf_curate.errors import InputError
from larf_curate.remote import is_url

if TYPE_CHECKING:
    from larf_curate.review.budget.rows import HarmPush
    from larf_curate.review.sampling.left import Left


def check_output(output: Path, selection: Path | str) -> None:
    """Check that a selection can be written to a folder.

    Args:
        output: The folder to write.
        selection: The folder or URL of the selection that is read.

    Raises:
        InputError: If it is the selection that is read, or has other results.
    """
    from larf_curate.data.replacement import check_replaceable
    from larf_curate.manifests import SELECTION

    if not is_url(selection) and output.resolve() == Path(selection).resolve():
        raise InputError(f"{output} is the selection that is read: give another output folder")
    check_replaceable(output, SELECTION, ("kept", "flagged"))


def echo_by_harm(pushed: "HarmPush", output: Path | None) -> None:
    """Print what a push by expected harm did besides its counts."""
    if not pushed.plan.chosen and not pushed.plan.random:
        click.echo(
            f"Nothing was added: the queue has {pushed.budget:,} rows already, or all there are: give a higher --budget"
        )
    if not pushed.grouping:
        click.echo("Near-identical rows were not looked for, which needs stored states and --profile.")
    if output is not None:
        click.echo(f"Written to {output}")


def echo_left(left: "Left", queue: Sequence[str]) -> None:
    """Print how many harmful rows are left, or what to read before that can be told.

    Args:
        left: The estimate.
        queue: The options that lead to the queue.
    """
    of = f"Harmful rows left among {left.unread:,} unread of {left.rows:,} {left.population}"
    if left.estimate is None:
        click.echo(f"{of}: {left.reason}")
        if left.random_read < left.random_sent:
            click.echo(
                f"To read random rows: {shlex.join(['larf-curate', 'review', 'next', '--by', 'random', *queue])}"
            )
    else:
        click.echo(
            f"{of}: about {left.estimate:,} [{left.low:,}, {left.high:,}] ({left.level:.0%}), by "
            f"{counted(left.random_read, 'random row')}; {left.found:,} found, at least {left.found_share:.0%} of all"
        )
    if left.unread and left.chosen_unread:
        click.echo(
            f"The upper bound counts {counted(left.chosen_unread, 'unread row')} sent by expected harm: read these next"
        )
    if left.random_missing:
        rows = counted(left.random_missing, "random row")
        click.echo(f"The upper bound counts {rows} missing in the queue: rejected by the server, or deleted there")
    if left.uncounted:
        click.echo(
            f"{counted(left.uncounted, 'decision')} on rows that were sent otherwise since do not count: repeat "
            "review push --strategy harm with the same --budget"
        )
