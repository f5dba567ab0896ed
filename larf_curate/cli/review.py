"""``larf-curate review``: push flagged rows to Argilla, and pull people's decisions; or go by files."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from larf_curate.cli import accounts, backup, learning, people, review_files, server
from larf_curate.cli.left import check_output, echo_by_harm, echo_left
from larf_curate.cli.options import FOLDER, FOLDER_OR_URL, READ_FOLDER, no_verify_option
from larf_curate.cli.output import echo_decisions, echo_json, echo_next, echo_table, json_option
from larf_curate.cli.pushed import remember, remembered
from larf_curate.cli.queues import QueueAddress, merge_option, queue_options
from larf_curate.errors import InputError
from larf_curate.remote import public_name
from larf_curate.review.strategies import PUSH_STRATEGIES

if TYPE_CHECKING:
    from larf_curate.review import QueueStatus
    from larf_curate.review.decisions.agreement import AnnotatorAgreement

SHOWN = 20  # rows of a table


@click.group()
def review() -> None:
    """Have people decide on flagged rows, in Argilla or by files.

    The server of Argilla is given by --url and the key in ARGILLA_API_KEY or --api-key-file; default: the one that
    `larf-curate review up` started on this machine. The commands export, import and page need no server.
    """


@review.command()
@click.argument("selection", metavar="SEL", type=READ_FOLDER)
@queue_options
@click.option(
    "--annotators",
    type=click.IntRange(min=1),
    help="Number of people who must decide each row; set when the queue is created.  [default: 1]",
)
@people.assign_option
@click.option(
    "--profile",
    metavar="PROFILE",
    type=READ_FOLDER,
    help="Profile that scored the rows, if this machine does not have it; for Find similar and near-identical rows.",
)
@click.option(
    "--group",
    is_flag=True,
    help="Show one of each group of near-identical rows; its decision applies to all of them, which pull records.",
)
@click.option(
    "--strategy",
    type=click.Choice(PUSH_STRATEGIES),
    default="flagged",
    show_default=True,
    help="flagged: all flagged rows. harm: until the queue has --budget rows, those with the highest expected harm, "
    "one of near-identical ones, and random ones, from which status estimates how many harmful rows are left.",
)
@click.option(
    "--budget",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of rows in the queue, for --strategy harm; repeat it with a higher one to go on.",
)
@click.option(
    "-o",
    "--output",
    metavar="SEL2",
    type=FOLDER,
    help="For --strategy harm: send unflagged rows too, and write the selection in which these are flagged; continue "
    "with it. The estimate is then about all rows.",
)
@no_verify_option
@json_option
def push(
    selection: Path | str,
    address: QueueAddress,
    annotators: int | None,
    assign: tuple[str, ...],
    profile: Path | str | None,
    group: bool,
    strategy: str,
    budget: int | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Add flagged rows to the review queue.

    SEL is the folder that select wrote. The command can be run again at any time: existing records stay, changed ones
    are updated, and no answer is lost.

    \b
    larf-curate review push selection/
    larf-curate review push selection/ --annotators 2 --assign alice,bob,carol
    larf-curate review push selection/ --strategy harm --budget 200
    larf-curate review push selection/ --url https://argilla.example.org --api-key-file key.txt
    """
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.selection import Selection

    _check_strategy(strategy, budget, output, group)
    if output is not None:
        check_output(output, selection)  # fail before rows are added to the queue
    loaded = Selection.load(selection)
    loaded_profile = SafetyProfile.from_pretrained(profile) if profile else None
    by_harm = None
    with address.create(selection, loaded, annotators=annotators or 1) as queue:
        people.check_annotators(queue, annotators, assign)
        if budget is None:
            result = queue.push(loaded, profile=loaded_profile, group=group)
        else:
            by_harm = queue.push_by_harm(loaded, budget=budget, unflagged=output is not None, profile=loaded_profile)
            result = by_harm.push
        if by_harm is not None and output is not None:
            by_harm.selection.save(output)
        remember(queue, output or selection)
        assigned = queue.assign(assign) if assign else None
    if as_json:
        more: dict[str, object] = {"assigned": asdict(assigned)} if assigned else {}
        more |= {"chosen": len(by_harm.plan.chosen), "random": len(by_harm.plan.random)} if by_harm else {}
        more |= {"selection": str(output)} if output else {}
        echo_json({"queue": queue.name} | asdict(result) | more)
    else:
        lines = [("new", result.pushed), ("updated", result.updated), ("unchanged", result.unchanged)]
        if by_harm is not None:
            lines = [("by expected harm", len(by_harm.plan.chosen)), ("at random", len(by_harm.plan.random))]
        grouped = [("near-identical, not shown", result.grouped)] if result.grouped else []
        echo_table("Review queue", ("rows", queue.name), [*lines, *grouped, ("rejected", len(result.failed))])
        if result.failed:
            echo_table("Rejected by the server", ("row", "reason"), result.failed, limit=SHOWN)
        if by_harm is not None:
            echo_by_harm(by_harm, output)
        click.echo(f"Review, worst first: {result.url}")
        if assigned:
            people.echo_assignment(assigned)
        echo_next("review", "pull", *address.given(), "-o", "decisions")
    if result.failed:  # scripts must not take an incomplete push for a complete one
        raise click.exceptions.Exit(1)


@review.command()
@queue_options
@json_option
def status(address: QueueAddress, as_json: bool) -> None:
    """Show the progress of the review.

    \b
    larf-curate review status
    larf-curate review status --json
    """
    with address.find() as queue:
        state = queue.status()
    public = address.public_urls()
    if as_json:
        echo_json({"queue": queue.name, **asdict(state), "public_urls": public})
        return
    echo_table("Review queue", ("", queue.name), _status_lines(state))
    people.echo_people(state, address)
    for title, rows in (
        ("Edits without a corrected answer, which decide nothing", state.unfinished),
        ("Corrected answers without Edit, which are not used", state.unused),
    ):
        if rows:
            lines = [(row, ", ".join(names)) for row, names in rows.items()]
            echo_table(title, ("row", "annotators"), lines, limit=SHOWN)
    if state.disagreements or state.unfinished:
        conflicts = shlex.join(["larf-curate", "review", "conflicts", *address.given()])
        click.echo(f"To send back disagreements and edits without a corrected answer: {conflicts}")
    if state.left is not None:
        echo_left(state.left, address.given())
    click.echo(f"Review, worst first: {state.url}")
    if public:
        click.echo(f"Other machines can sign in at {' or '.join(public)}, and nothing is encrypted.")


@review.command("list")
@queue_options
@json_option
def list_queues(address: QueueAddress, as_json: bool) -> None:
    """List the review queues of the server.

    \b
    larf-curate review list
    larf-curate review list --json
    """
    with address.server() as server:
        names = [name for name in server.queues() if address.name in (None, name)]
        found = [server.named(name).summary() for name in names]
    if as_json:
        echo_json({"queues": [asdict(queue) for queue in found]})
        return
    columns = ("queue", "dataset", "profile", "done")
    lines = [(q.name, ", ".join(q.datasets) or "-", q.profile or "-", f"{q.done:,} of {q.rows:,}") for q in found]
    echo_table(f"Review queues on {server.server_url}", columns, lines)


@review.command()
@click.argument("selection", metavar="[SEL]", type=READ_FOLDER, required=False)
@click.option("-o", "--output", metavar="DEC", type=FOLDER_OR_URL, required=True, help="Folder to write, or its URL.")
@merge_option
@queue_options
@no_verify_option
@json_option
def pull(
    selection: Path | str | None,
    output: Path | str,
    merge: str,
    address: QueueAddress,
    as_json: bool,
) -> None:
    """Fetch the decisions and split the selection by them.

    SEL is the folder that was pushed; default: the one last pushed to this queue from this machine. DEC gets kept/,
    removed/ and withheld/ (undecided, unsure, in conflict, or changed since the review), and decisions.parquet.

    \b
    larf-curate review pull -o decisions/
    larf-curate review pull selection/ -o decisions/ --merge arbiter:maria
    """
    from larf_curate.data.tables import no_progress_bars
    from larf_curate.scoring.selection import Selection

    with no_progress_bars(), address.find(selection) as queue:
        loaded = Selection.load(selection or remembered(queue))
        outcome = queue.pull(merge=merge).apply(loaded)
        outcome.save(output)
    if as_json:
        echo_json({"decisions": public_name(output), "counts": outcome.counts, "queue": queue.name})
    else:
        conflicts = shlex.join(["larf-curate", "review", "conflicts", *address.given()])
        echo_decisions(outcome, output, remedy=f"To send them back to those who answered: {conflicts}")


def _check_strategy(strategy: str, budget: int | None, output: Path | None, group: bool) -> None:
    """Refuse options that do not go together."""
    if strategy == "harm" and budget is None:
        raise InputError("--strategy harm needs the number of rows that the queue should have: give --budget N")
    if strategy == "harm" and group:
        raise InputError("--strategy harm sends one of near-identical rows by itself: leave out --group")
    if strategy != "harm" and (budget is not None or output is not None):
        raise InputError("--budget and -o are for --strategy harm: give --strategy harm too")


def _status_lines(state: "QueueStatus") -> list[tuple[str, object]]:
    """The status as labels and values; lines that do not apply are left out."""
    pace = state.decisions_per_hour
    return [
        ("rows", state.rows),
        *([("near-identical, not shown", state.grouped)] if state.grouped else []),
        ("done", state.done),
        ("pending", state.pending),
        *((f"decided {decision}", count) for decision, count in state.decisions.items()),
        *([("edits without a corrected answer", len(state.unfinished))] if state.unfinished else []),
        *([("corrected answers without Edit", len(state.unused))] if state.unused else []),
        ("disagreements", state.disagreements),
        ("drafts", state.drafts),
        ("discarded", state.discards),
        ("answers to an earlier text", state.outdated),
        *([(state.agreement.name.replace("_", " "), _coefficient(state.agreement))] if state.agreement else []),
        ("decisions per hour and annotator", "-" if pace is None else f"{pace:.0f}"),
    ]


def _coefficient(found: "AnnotatorAgreement") -> str:
    """The coefficient of all rows; a dash for what too few rows cannot tell, as in the tables of people and labels."""
    from larf_curate.review.decisions.agreement import MIN_ROWS

    return f"{found.value:.3f}" if found.rows >= MIN_ROWS else "-"


# Defined in modules of their own, but commands of this group.
_COMMANDS = (review_files, learning, people, server, backup, accounts)
for _command in (command for module in _COMMANDS for command in module.commands):
    review.add_command(_command)
