"""``larf-curate review next``, ``rerank`` and ``conflicts``: rank rows by what people decided so far."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.left import check_output
from larf_curate.cli.options import FOLDER, READ_FOLDER
from larf_curate.cli.output import echo_json, echo_table, json_option
from larf_curate.cli.people import send_to_third_person
from larf_curate.cli.pushed import remember, remembered
from larf_curate.cli.queues import QueueAddress, merge_option, queue_options
from larf_curate.errors import InputError
from larf_curate.review.strategies import STRATEGIES

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile
    from larf_curate.review import Reranked, ReviewQueue
    from larf_curate.scoring.selection import Selection

SHOWN = 20
"""Conflicts printed; the review page shows all."""


def _learning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that define what to learn from."""
    options = (
        click.argument("selection", metavar="[SEL]", type=READ_FOLDER, required=False),
        click.option(
            "--profile",
            metavar="PROFILE",
            type=READ_FOLDER,
            help="Profile that scored the rows, if this machine does not have it; its references are learned from.",
        ),
        click.option(
            "--decisions",
            "earlier",
            metavar="DEC",
            type=READ_FOLDER,
            multiple=True,
            help="Also learn from the decisions on another dataset that the same profile scored: a folder that review "
            "pull or review import wrote. May be repeated.",
        ),
        merge_option,
    )
    for option in reversed(options):  # decorators apply from the inside out
        command = option(command)
    return queue_options(command)


@click.command("next")
@click.option(
    "--by",
    type=click.Choice(STRATEGIES),
    default="score",
    show_default=True,
    help="score: highest learned score. uncertain: annotators disagree, or the probability of removal is closest to "
    "one half. different: least similar to all decided rows. random: the random rows of push --strategy harm, by which "
    "review status estimates how many harmful rows are left.",
)
@click.option("-n", "count", type=click.IntRange(min=1), default=10, show_default=True, help="Number of rows.")
@_learning_options
@json_option
def next_rows(
    by: str,
    count: int,
    selection: Path | str | None,
    profile: Path | str | None,
    earlier: tuple[Path | str, ...],
    merge: str,
    address: QueueAddress,
    as_json: bool,
) -> None:
    """Propose which rows to review next, and why.

    Prints a link that shows only these rows. The proposal learns from all decisions so far. SEL is the folder that was
    pushed; default: the one last pushed to this queue from this machine. Its rows must have been scored with their
    states (not with --no-states).

    \b
    larf-curate review next
    larf-curate review next --by uncertain -n 20
    """
    with address.find(selection) as queue:
        loaded, given_profile, _ = _load(queue, selection, profile)
        proposals = queue.propose(loaded, by=by, n=count, profile=given_profile, merge=merge, earlier=earlier)
    if as_json:
        echo_json({"queue": queue.name} | asdict(proposals))
        return
    lines = [
        (row.row_id, f"{row.text}\n{row.why}", _number(row.score), _number(row.machine_score)) for row in proposals.rows
    ]
    echo_table(f"Rows to review next, by {by}", ("row", "text, and why", "learned", "machine"), lines)
    _echo_held_out(proposals.summary)
    click.echo(f"Review these: {proposals.url}")
    if proposals.conflicts_url:
        click.echo(f"Conflicts; each annotator re-decides the rows they answered: {proposals.conflicts_url}")


@click.command()
@click.option(
    "-o",
    "--output",
    metavar="SEL2",
    type=FOLDER,
    help="Folder to write: the selection with larf_learned_score, and exemplars/ with the removed rows.",
)
@click.option(
    "--add",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Also add the N unflagged rows with the highest learned score to the queue; needs -o.",
)
@_learning_options
@json_option
def rerank(
    output: Path | None,
    add: int,
    selection: Path | str | None,
    profile: Path | str | None,
    earlier: tuple[Path | str, ...],
    merge: str,
    address: QueueAddress,
    as_json: bool,
) -> None:
    """Re-rank the undecided rows by the decisions so far.

    No model is needed. The page then shows the undecided rows by their learned score, worst first. Answers are not
    changed, and larf_score stays in the data. SEL is the folder that was pushed; default: the one last pushed to this
    queue from this machine. Its rows must have been scored with their states (not with --no-states). After --add,
    continue with SEL2, in which the added rows are flagged.

    \b
    larf-curate review rerank
    larf-curate review rerank -o learned/ --add 50
    larf-curate review rerank --decisions earlier/
    larf-curate score other.jsonl --profile profile/ --exemplars learned/exemplars -o scored/
    """
    if add and output is None:
        raise InputError("--add needs a folder for the selection with the added rows: give -o SEL2")
    with address.find(selection) as queue:
        loaded, given_profile, folder = _load(queue, selection, profile)
        if output is not None:
            check_output(output, folder)  # fail before rows are added to the queue
        result = queue.rerank(loaded, profile=given_profile, merge=merge, add=add, earlier=earlier)
        if output is not None:
            result.save(output)
            remember(queue, output)
    exemplars = output and _save_exemplars(result, loaded, given_profile, output)
    if as_json:
        echo_json(
            {
                "queue": queue.name,
                **result.summary(),
                "selection": str(output) if output else None,
                "exemplars": exemplars,
            }
        )
        return
    learned = result.learned
    lines = [("decided rows learned from", learned.removed + learned.kept), ("removed or edited", learned.removed)]
    lines += [("kept", learned.kept)]
    lines += [("decisions on other datasets", learned.earlier)] if earlier else []
    lines += [("undecided rows with a new score", result.updated)]
    lines += [("rows added to the queue", len(result.added))] if add else []
    echo_table("Re-ranked", ("", ""), lines)
    _echo_held_out(result.summary())
    if result.overlooked:
        again = shlex.join(["larf-curate", "review", "rerank", *address.given(), "--add", str(result.overlooked)])
        click.echo(
            f"{result.overlooked:,} rows outside the queue are more likely than not to be removed: "
            f"add them with {again} -o SEL2"
        )
    if output is not None:
        click.echo(f"Written to {output}")
    click.echo(f"Review, worst first: {result.url}")


@click.command()
@click.option("--to", metavar="USERNAME", help="Send them to a third person, who has not answered them, instead.")
@merge_option
@queue_options
@json_option
def conflicts(to: str | None, merge: str, address: QueueAddress, as_json: bool) -> None:
    """Send disagreements and edits without a corrected answer back to their annotators, or conflicts to a third person.

    Lists these rows. The link shows each annotator the conflicts that they answered, to answer again. Run the command
    again to drop from the link what they agree on by then; for the rest, pull --merge arbiter:USERNAME lets one of them
    decide.

    With --to, a third person gets the rows on which those who answered are in conflict under --merge, and a link that
    shows only these. Their answer is one more vote; with pull --merge arbiter:USERNAME, it decides.

    \b
    larf-curate review conflicts
    larf-curate review conflicts --to carol
    """
    if to is not None:
        send_to_third_person(to, merge, address, as_json)
        return
    with address.find() as queue:
        found = queue.send_back()
    if as_json:
        echo_json({"queue": queue.name} | asdict(found))
        return
    said = {row: ", ".join(f"{who} {vote}" for who, vote in votes.items()) for row, votes in found.votes.items()}
    unfinished = {row: f"edit without a corrected answer: {', '.join(who)}" for row, who in found.unfinished.items()}
    lines = [
        (row, found.texts[row], "; ".join(filter(None, (said.get(row), unfinished.get(row)))))
        for row in {**said, **unfinished}
    ]
    echo_table(f"Conflicts: {len(lines)}", ("row", "text", "decisions"), lines, limit=SHOWN)
    if lines:
        click.echo(f"Conflicts; each annotator re-decides the rows they answered: {found.url}")


commands = (next_rows, rerank, conflicts)


def _load(
    queue: "ReviewQueue", selection: Path | str | None, profile: Path | str | None
) -> tuple["Selection", "SafetyProfile | None", Path | str]:
    """The selection, the profile if given, and the selection's folder, which by default is the last pushed one."""
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
    """Save the profile's exemplars together with the removed rows; returns the folder, or None without a profile."""
    from larf_curate.profile.cache import profile_of
    from larf_curate.scoring.exemplars import ExemplarIndex

    profile = profile_of(selection.scored, profile)
    if profile is None:
        return None
    result.exemplars(ExemplarIndex.of_profile(profile)).save(output / "exemplars")
    return str(output / "exemplars")


def _echo_held_out(summary: Mapping[str, Any]) -> None:
    """Print how well the ranking predicts held-out decisions, or that there are too few to tell."""
    from larf_curate.review.learning.ranking import MIN_PER_CLASS

    held_out = summary["held_out"]
    if held_out is None or not held_out["enough"]:
        sides = f"{summary['removed']} removed, {summary['kept']} kept"
        click.echo(f"The learned ranking cannot be evaluated yet: {sides}; wanted {MIN_PER_CLASS} of each.")
        return
    click.echo(
        f"Held-out decisions ({summary['removed']} removed, {summary['kept']} kept): AUROC "
        f"{held_out['auroc']:.3f}, average precision {held_out['average_precision']:.3f}; the machine score alone "
        f"{held_out['machine_auroc']:.3f}, {held_out['machine_average_precision']:.3f}."
    )
    if held_out["own_auroc"] is None:
        return
    helps = held_out["auroc"] >= held_out["own_auroc"]
    click.echo(
        f"Without the decisions on other datasets: {held_out['own_auroc']:.3f}, "
        f"{held_out['own_average_precision']:.3f}{'.' if helps else ': they do not help here, leave out --decisions.'}"
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
