"""``larf-curate review next``, ``rerank`` and ``conflicts``: the ranking learns from people."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.options import FOLDER
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.cli.queues import QueueAddress, queue_options, remember, remembered
from larf_curate.errors import InputError
from larf_curate.review.strategies import STRATEGIES

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile
    from larf_curate.review import Reranked, ReviewQueue
    from larf_curate.scoring.selection import Selection

SHOWN = 20


def _learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what to learn from."""
    options = (
        click.argument("selection", metavar="[SEL]", type=FOLDER, required=False),
        click.option(
            "--profile",
            metavar="PROFILE",
            type=FOLDER,
            help="Profile that scored the rows, where this machine does not have it: its references teach too.",
        ),
        click.option(
            "--merge",
            default="majority",
            show_default=True,
            metavar="RULE",
            help="How several answers become one: majority, unanimous or arbiter:USERNAME.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return queue_options(command)


@click.command("next")
@click.option(
    "--by",
    type=click.Choice(STRATEGIES),
    default="score",
    show_default=True,
    help="score: highest learned score. uncertain: annotators disagree, or the chance of removal is nearest to even. "
    "different: most unlike all that was decided.",
)
@click.option("-n", "count", type=click.IntRange(min=1), default=10, show_default=True, help="How many rows.")
@_learning_options
@json_option
def next_rows(
    by: str,
    count: int,
    selection: Path | None,
    profile: Path | None,
    merge: str,
    address: QueueAddress,
    as_json: bool,
) -> None:
    """Propose what to look at next, and why, with a link that shows these rows alone.

    The proposal learns from every decision so far. SEL is the folder that was pushed; by default the one last pushed to
    this queue from this machine. Its rows must have been scored with their states (not with --no-states).

    \b
    larf-curate review next
    larf-curate review next --by uncertain -n 20
    """
    with address.open() as queue:
        chosen, scored_by, _ = _loaded(queue, selection, profile)
        proposals = queue.propose(chosen, by=by, n=count, profile=scored_by, merge=merge)
    if as_json:
        echo_json(asdict(proposals))
        return
    lines = [(row.row_id, _number(row.score), _number(row.machine_score), row.why) for row in proposals.rows]
    echo_table(f"Next, by {by}", ("row", "learned", "machine", "why"), lines)
    _echo_held_out(proposals.summary)
    click.echo(f"Review these: {proposals.url}")
    if proposals.conflicts_url:
        click.echo(f"Decide again, each annotator their own: {proposals.conflicts_url}")


@click.command()
@click.option(
    "-o",
    "--output",
    metavar="SEL2",
    type=FOLDER,
    help="Folder to write: the selection with larf_learned_score, and exemplars/ with the rows that people removed.",
)
@click.option(
    "--add",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Put the N unflagged rows with the highest learned score before reviewers too; needs -o.",
)
@_learning_options
@json_option
def rerank(
    output: Path | None,
    add: int,
    selection: Path | None,
    profile: Path | None,
    merge: str,
    address: QueueAddress,
    as_json: bool,
) -> None:
    """Rank what is left of the queue anew by what people decided so far; no model is needed.

    The page then shows the undecided rows by their learned score, worst first; no answer is touched, and larf_score
    stays in the data. SEL is the folder that was pushed; by default the one last pushed to this queue from this
    machine. Its rows must have been scored with their states (not with --no-states). With --add go
    on with SEL2: it has the added rows flagged.

    \b
    larf-curate review rerank
    larf-curate review rerank -o learned/ --add 50
    larf-curate score other.jsonl --profile profile/ --exemplars learned/exemplars -o scored/
    """
    if add and output is None:
        raise InputError("wanted a folder for the selection with the added rows: give -o SEL2")
    from larf_curate.manifests import SELECTION, check_folder

    with address.open() as queue:
        chosen, scored_by, folder = _loaded(queue, selection, profile)
        if output is not None and output.resolve() == folder.resolve():
            raise InputError(f"{output} is the selection that is read: give another folder to write")
        if output is not None:
            check_folder(output, SELECTION)  # before rows are added to the queue
        result = queue.rerank(chosen, profile=scored_by, merge=merge, add=add)
        if output is not None:
            result.save(output)
            remember(queue, output)
    grown = output and _save_exemplars(result, chosen, scored_by, output)
    if as_json:
        echo_json({**result.summary(), "selection": str(output) if output else None, "exemplars": grown})
        return
    held = result.learned
    lines = [("decided rows learned from", held.removed + held.kept), ("removed or edited", held.removed)]
    lines += [("kept", held.kept), ("undecided rows with a new score", result.updated)]
    lines += [("rows added to the queue", len(result.added))] if add else []
    echo_table("Ranked anew", ("", ""), lines)
    _echo_held_out(result.summary())
    if result.overlooked:
        click.echo(
            f"{result.overlooked:,} rows outside the queue are more likely than not to be removed: "
            f"look at them with --add {result.overlooked} -o SEL2"
        )
    if output is not None:
        click.echo(f"Written to {output}")
    click.echo(f"Review, worst first: {result.url}")


@click.command()
@queue_options
@json_option
def conflicts(address: QueueAddress, as_json: bool) -> None:
    """List the rows on which annotators disagree, and send them back to those who answered.

    The link shows each annotator the conflicts that they answered, to answer anew. Run it again to drop from the link
    what they agree on by then; for what stays, pull --merge arbiter:USERNAME lets one of them decide.

    \b
    larf-curate review conflicts
    """
    with address.open() as queue:
        found = queue.send_back()
    if as_json:
        echo_json(asdict(found))
        return
    lines = [(row, ", ".join(f"{who} {said}" for who, said in votes.items())) for row, votes in found.votes.items()]
    echo_table(f"Conflicts: {len(lines)}", ("row", "decisions"), lines[:SHOWN])
    if lines:
        click.echo(f"Decide again, each annotator their own: {found.url}")


commands = (next_rows, rerank, conflicts)


def _loaded(
    queue: "ReviewQueue", selection: Path | None, profile: Path | None
) -> tuple["Selection", "SafetyProfile | None", Path]:
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.selection import Selection

    folder = selection or remembered(queue)
    return Selection.load(folder), SafetyProfile.from_pretrained(profile) if profile else None, folder


def _save_exemplars(
    result: "Reranked",
    selection: "Selection",
    profile: "SafetyProfile | None",
    output: Path,
) -> str | None:
    """Write the profile's exemplars and the removed rows; returns the folder, None without a profile."""
    from larf_curate.profile.cache import profile_of
    from larf_curate.scoring.exemplars import ExemplarIndex

    known = profile_of(selection.scored, profile)
    if known is None:
        return None
    result.exemplars(ExemplarIndex.of_profile(known)).save(output / "exemplars")
    return str(output / "exemplars")


def _echo_held_out(summary: Mapping[str, Any]) -> None:
    """Say how well the ranking predicts decisions it has not seen, or that nobody can tell yet."""
    held_out = summary["held_out"]
    if held_out is None or not held_out["enough"]:
        sides = f"{summary['removed']} removed, {summary['kept']} kept"
        click.echo(f"How good the learned ranking is cannot be told yet: {sides}; wanted 10 of each.")
        return
    click.echo(
        f"Decisions it had not seen ({summary['removed']} removed, {summary['kept']} kept): AUROC "
        f"{held_out['auroc']:.3f}, average precision {held_out['average_precision']:.3f}; the machine alone "
        f"{held_out['machine_auroc']:.3f}, {held_out['machine_average_precision']:.3f}."
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
