"""Rows assigned to people, so that each person's link shows theirs.

Argilla has no assignment: an assigned row is a record with the metadata term of its people, by which links filter. Who
opens the queue without the filter sees all rows, and answers of anybody in the workspace count.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from larf_curate.errors import InputError
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.argilla.marks import set_terms, term_of
from larf_curate.review.argilla.settings import ASSIGNED, ASSIGNED_TITLE, CLUSTER
from larf_curate.review.decisions.responses import ReviewedRecord
from larf_curate.review.people.balance import Assignable, choose


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The rows of a queue by person.

    Args:
        per_row: How many people are to decide each row.
        changed: Number of rows that got people now.
        rows: Number of rows by person, also of those who got none now.
        short: Number of open rows for which there are too few people, because somebody has discarded them.
        links: Link by person, which shows those of their rows that are open.
    """

    per_row: int
    changed: int
    rows: Mapping[str, int]
    short: int
    links: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PeopleLinks:
    """The links of people; only of those who have rows or conflicts.

    Args:
        rows: By person, a link that shows those of their rows that are open.
        conflicts: By third person, a link that shows the conflicts that they have still to decide.
    """

    rows: Mapping[str, str]
    conflicts: Mapping[str, str]


def assign(
    store: RecordStore,
    records: Sequence[Mapping[str, Any]],
    reviewed: Sequence[ReviewedRecord],
    people: Sequence[str],
    *,
    departed: Collection[str] = (),
) -> Assignment:
    """Assign the open rows that lack people; nobody loses a row who has an account.

    Who has answered a row already counts as one of its people.

    Args:
        store: The review dataset.
        records: All its records, as returned by the server.
        reviewed: The same records with their judgements.
        people: Names of the people among whom to choose.
        departed: Names of people whose account was deleted: their open rows lack somebody.

    Raises:
        InputError: If there are too few people for the queue, or a name is there twice or cannot be in a link.
    """
    per_row = store.min_submitted
    _check_number(people, per_row)
    groups = {record["external_id"]: (record["metadata"] or {}).get(CLUSTER) for record in records}
    reviewed = [
        record if record.done else replace(record, assigned=tuple(n for n in record.assigned if n not in departed))
        for record in reviewed
    ]
    rows = [_assignable(record, groups.get(record.row_id), people, per_row) for record in reviewed]
    chosen = choose(rows, people)
    wanted = {row: {term_of(name) for name in names} for row, names in chosen.items()}
    changed = set_terms(store, records, ASSIGNED, ASSIGNED_TITLE, wanted)
    counts = Counter({name: 0 for name in people})
    counts.update(name for row in reviewed for name in chosen.get(row.row_id, row.assigned))
    return Assignment(
        per_row=per_row,
        changed=changed,
        rows=dict(sorted(counts.items())),
        short=sum(row.lacking > len(chosen.get(row.row_id, row.people)) - len(row.people) for row in rows),
        links=person_links(store, counts),
    )


def person_links(store: RecordStore, people: Iterable[str]) -> dict[str, str]:
    """The link of each person, which shows those of their rows that are open."""
    return {name: store.link(terms={ASSIGNED: term_of(name)}) for name in sorted(people)}


def check_people(people: Collection[str], reviewers: Collection[str], workspace: str) -> None:
    """Require that people have an account that can open the queue.

    Raises:
        InputError: If one has none.
    """
    if unknown := sorted(set(people) - set(reviewers)):
        raise InputError(
            f"wanted people among {', '.join(reviewers)}, who can open the workspace {workspace!r}, got "
            f"{', '.join(unknown)}: create accounts with larf-curate review user NAME --workspace {workspace}"
        )


def _check_number(people: Sequence[str], per_row: int) -> None:
    if twice := sorted(name for name, count in Counter(people).items() if count > 1):
        raise InputError(f"wanted each person once, got {', '.join(twice)} twice")
    if len(people) < per_row:
        raise InputError(
            f"each row of this queue is decided by {per_row}: wanted as many people or more, got {', '.join(people)}"
        )


def _assignable(record: ReviewedRecord, group: str | None, people: Collection[str], per_row: int) -> Assignable:
    """A row as it stands; one that is done lacks nobody."""
    answered = [j.annotator for j in record.counted]
    names = tuple(dict.fromkeys([*record.assigned, *(name for name in answered if name in people)]))
    unable = {j.annotator for j in record.judgements if j.status == "discarded"}
    able = {*names, *answered} - unable
    return Assignable(
        row_id=record.row_id, group=group, people=names, lacking=0 if record.done else max(0, per_row - len(able))
    )
