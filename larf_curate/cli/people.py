"""Several people: ``larf-curate review links``, ``push --assign``, ``conflicts --to``, and people in ``status``."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from larf_curate.cli.output import counted, echo_json, echo_next, echo_table, json_option
from larf_curate.cli.queues import QueueAddress, queue_options
from larf_curate.errors import InputError

if TYPE_CHECKING:
    from larf_curate.review import Assignment, QueueStatus, ReviewQueue
    from larf_curate.review.decisions.agreement import SharedRows

SHOWN = 20
"""Rows of a table of rejected rows."""


def _read_people(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Click callback: names separated by commas."""
    if value is None:
        return ()
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise click.BadParameter(f"wanted user names separated by commas, got {value!r}", ctx, param)
    return names


assign_option: Callable[..., Any] = click.option(
    "--assign",
    metavar="USERNAMES",
    callback=_read_people,
    help="Assign rows that lack people to these, separated by commas; each row to as many as must decide it.",
)


def check_annotators(queue: "ReviewQueue", wanted: int | None, people: Sequence[str]) -> None:
    """Refuse, before anything is pushed, another number of people than the queue has, or fewer than it needs.

    Args:
        queue: The queue, which need not exist yet.
        wanted: Number of people who must decide each row; None if not given.
        people: People to assign rows to; none if rows are not assigned.
    """
    existing = queue.annotators_per_row()
    if existing and wanted and existing != wanted:
        raise InputError(
            f"each row of this queue is decided by {existing}, wanted {wanted}: that is set when a queue is created; "
            "leave out --annotators, or give --name of another queue"
        )
    needed = existing or wanted or 1
    if people and len(people) < needed:
        raise InputError(f"each row is decided by {needed}: wanted as many people in --assign, got {', '.join(people)}")


def echo_assignment(assigned: "Assignment") -> None:
    """Print how many rows each person has, and their links."""
    title = f"Assigned, {counted(assigned.per_row, 'person').replace('persons', 'people')} a row"
    echo_table(title, ("person", "rows"), list(assigned.rows.items()))
    if assigned.short:
        click.echo(f"{counted(assigned.short, 'open row')} can be assigned to nobody else: add people to --assign")
    _echo_links(assigned.links)


def echo_people(state: "QueueStatus", address: QueueAddress) -> None:
    """Print where each person stands, and agreement by decision and hazard category."""
    has_rows = any(person.assigned for person in state.people)
    columns = ["person", *(["rows", "left"] if has_rows else []), "answers", "shared rows", "agree", "kappa"]
    lines = [
        [
            person.name,
            *([person.assigned, person.left] if has_rows else []),
            person.answered,
            *_shared(person.agreement),
        ]
        for person in state.people
    ]
    if lines:
        echo_table("People, and their agreement with the others", columns, lines)
    for title, by_label in (
        ("Agreement by decision", state.agreement_by_decision),
        ("Agreement by hazard category", state.agreement_by_category),
    ):
        if by_label:
            lines = [[label, *_shared(shared)] for label, shared in by_label.items()]
            echo_table(title, ("", "shared rows", "agree", "alpha"), lines)
    for line in _notes(state):
        click.echo(line)
    if has_rows:
        click.echo(f"Each person's link: {shlex.join(['larf-curate', 'review', 'links', *address.given()])}")


def _notes(state: "QueueStatus") -> list[str]:
    """What the table of people does not show; only what there is."""
    notes = [
        f"{person.name}: {counted(person.conflicts, 'conflict')} as third person, {person.conflicts_left} left"
        for person in state.people
        if person.conflicts
    ]
    notes += [
        f"{person.name}: {counted(person.unassigned, 'answer')} to rows of others, which count too"
        for person in state.people
        if person.unassigned
    ]
    if state.unassigned:
        notes.append(f"{counted(state.unassigned, 'open row')} assigned to nobody: push again with --assign")
    return notes


def _shared(shared: "SharedRows") -> list[object]:
    """Rows, share and coefficient as cells; a dash for what too few rows cannot tell."""
    share = "-" if shared.share is None else f"{shared.share:.0%}"
    coefficient = "-" if shared.coefficient is None else f"{shared.coefficient:.2f}"
    return [shared.rows, share, coefficient]


@click.command()
@queue_options
@json_option
def links(address: QueueAddress, as_json: bool) -> None:
    """Print each person's link.

    It shows the rows assigned to them that are open, and no others; a second one, if they are a third person, the
    conflicts that they have still to decide.

    \b
    larf-curate review links
    """
    with address.find() as queue:
        found = queue.links()
    if as_json:
        echo_json({"queue": queue.name} | asdict(found))
        return
    if not found.rows and not found.conflicts:
        click.echo("No rows are assigned: larf-curate review push SEL --assign USERNAMES")
    _echo_links(found.rows)
    _echo_links(found.conflicts, suffix=", conflicts")


def _echo_links(found: Mapping[str, str], *, suffix: str = "") -> None:
    for name, link in found.items():
        click.echo(f"{name}{suffix}: {link}")


def send_to_third_person(to: str, merge: str, address: QueueAddress, as_json: bool) -> None:
    """Send conflicts to a third person, and print what became of each."""
    with address.find() as queue:
        found = queue.send_conflicts(to, merge=merge)
    if as_json:
        echo_json({"queue": queue.name} | asdict(found))
    else:
        counts = (("to decide", found.sent), ("answered already", found.answered), ("discarded", found.discarded))
        lines = [(name, len(rows)) for name, rows in counts] + [("not sent, more answers to come", found.waiting)]
        echo_table(f"Conflicts for {found.to}", ("", "rows"), lines)
        if found.failed:
            echo_table("Rejected by the server", ("row", "reason"), found.failed, limit=SHOWN)
        if found.answered:
            click.echo(f"Those that {found.to} has answered need another person, or pull --merge arbiter:{found.to}")
        if found.sent:
            click.echo(f"{found.to} decides them here: {found.url}")
            echo_next("review", "pull", *address.given(), "--merge", merge, "-o", "decisions")
    if found.failed:
        raise click.exceptions.Exit(1)


commands = (links,)
