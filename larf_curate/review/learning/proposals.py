"""What to look at next, and why."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from larf_curate.errors import InputError
from larf_curate.review.argilla.marks import mark
from larf_curate.review.decisions.responses import ReviewedRecord
from larf_curate.review.learning import farthest
from larf_curate.review.learning.snapshot import Standing
from larf_curate.review.strategies import STRATEGIES, Strategy
from larf_curate.signals.protocol import unit

CONFLICT = "conflict"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A record to look at.

    Args:
        row_id: Its ``larf_row_id``.
        record_id: Its id on the server.
        why: The reason, in words.
        score: Learned score; None if the row could not be scored.
        machine_score: ``larf_score``.
        chance: Estimated chance that a person removes it.
        conflict: Whether all have answered and disagree: those who did find it under *submitted*.
    """

    row_id: str
    record_id: str
    why: str
    score: float | None
    machine_score: float | None
    chance: float | None
    conflict: bool = False


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """What to look at next.

    Args:
        by: How the records were chosen: ``score``, ``uncertain`` or ``different``.
        rows: The records, first ones first.
        url: The undecided ones in the browser, and no others.
        conflicts_url: Those on which annotators disagree, in the browser; None if there are none among them.
        summary: Decisions and held-out figures of the ranking.
    """

    by: str
    rows: tuple[Proposal, ...]
    url: str
    conflicts_url: str | None
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conflicts:
    """Records on which annotators disagree, sent back to those who answered.

    Args:
        votes: The decision of each annotator, by row id.
        url: These records in the browser: each annotator finds those that they answered, to answer them anew.
    """

    votes: Mapping[str, Mapping[str, str]]
    url: str


def propose(standing: Standing, *, by: str = "score", n: int = 10) -> Proposals:
    """Choose undecided records of the queue, and mark them on the server so that a link shows them alone.

    Args:
        standing: The queue and its ranking.
        by: ``score``: highest learned score. ``uncertain``: annotators disagree, else a chance of removal nearest to
            one half. ``different``: farthest, in the space of states, from all decided rows and from each other.
        n: How many, at least 1.

    Raises:
        InputError: If there is no such way, or n is below 1.
    """
    if by not in STRATEGIES or n < 1:
        raise InputError(f"wanted at least 1 row by one of {', '.join(STRATEGIES)}, got {n} by {by!r}")
    pending = [r["external_id"] for r in standing.records if r["status"] != "completed"]
    undecided = [row for row in pending if row in standing.places and row not in standing.decided]
    told = disagreements(standing.reviewed) if by == "uncertain" else {}
    chosen = [*list(told)[:n]]
    rest = [row for row in undecided if row not in told]
    choose = CHOOSERS[by]
    chosen += choose(standing, rest, n - len(chosen)) if n > len(chosen) else []
    done = {record.row_id for record in standing.reviewed if record.done}
    rows = _explained(standing, by, chosen, told, done)
    mark(standing.store, standing.records, by, chosen)
    return Proposals(
        by=by,
        rows=rows,
        url=standing.store.link(proposed=by),
        conflicts_url=standing.store.link(status="submitted", proposed=by) if any(r.conflict for r in rows) else None,
        summary=standing.learned.summary(),
    )


def disagreements(reviewed: Iterable[ReviewedRecord]) -> dict[str, dict[str, str]]:
    """The decision of each annotator on the records on which they differ, by row id."""
    votes = {record.row_id: {j.annotator: j.decision or "" for j in record.counted} for record in reviewed}
    return {row: by for row, by in votes.items() if len(set(by.values())) > 1}


def _highest(standing: Standing, rows: Sequence[str], n: int) -> list[str]:
    """By learned score; rows that could not be scored last."""
    scores = np.array([standing.learned.scores[standing.places[row]] for row in rows])
    return [rows[i] for i in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:n]]


def _least_certain(standing: Standing, rows: Sequence[str], n: int) -> list[str]:
    """By how near their chance of removal is to one half; rows that could not be scored last."""
    chances = np.array([standing.learned.chances[standing.places[row]] for row in rows])
    return [rows[i] for i in np.argsort(np.nan_to_num(abs(chances - 0.5), nan=1.0), kind="stable")[:n]]


def _most_different(standing: Standing, rows: Sequence[str], n: int) -> list[str]:
    known = [standing.places[row] for row in standing.decided]
    places = [standing.places[row] for row in _highest(standing, rows, len(rows))]
    places = [place for place in places if standing.learned.directions[place].any()]
    return [standing.row_ids[place] for place in farthest(standing.learned.directions, known, places, n)]


CHOOSERS: dict[Strategy, Callable[[Standing, Sequence[str], int], list[str]]] = {
    "score": _highest,
    "uncertain": _least_certain,
    "different": _most_different,
}


def _explained(
    standing: Standing, by: str, chosen: Sequence[str], told: Mapping[str, Mapping[str, str]], done: set[str]
) -> tuple[Proposal, ...]:
    ids = {record["external_id"]: record["id"] for record in standing.records}
    machine = dict(zip(standing.row_ids, standing.machine_scores, strict=True))
    rows = []
    for row in chosen:
        place = standing.places.get(row)
        score, chance = (
            (None, None)
            if place is None
            else (_number(standing.learned.scores[place]), _number(standing.learned.chances[place]))
        )
        rows.append(
            Proposal(
                row_id=row,
                record_id=ids[row],
                why=_why(standing, by, row, told.get(row), score, chance),
                score=score,
                machine_score=machine.get(row),
                chance=chance,
                conflict=row in done,
            )
        )
    return tuple(rows)


def _why(
    standing: Standing,
    by: str,
    row: str,
    votes: Mapping[str, str] | None,
    score: float | None,
    chance: float | None,
) -> str:
    if votes:
        return "annotators disagree: " + ", ".join(f"{name} {decision}" for name, decision in votes.items())
    if score is None or chance is None:
        return "could not be scored: only a person can tell"
    near = _nearest(standing, row)
    if by == "different":
        return f"unlike all that was decided: {near}" if near else "nothing decided yet: unlike the rows before it"
    first = {
        "score": f"learned score {score:.2f}, chance of removal {chance:.0%}",
        "uncertain": f"chance of removal {chance:.0%}, nearest to even",
    }[by]
    return f"{first}; {near}" if near else first


def _nearest(standing: Standing, row: str) -> str:
    """The decided row that is most like a row, in words; empty if there is none."""
    known = list(standing.decided)
    own = standing.learned.directions[standing.places[row]]
    if not known or not own.any():
        return ""
    cosines = unit(standing.learned.directions[[standing.places[other] for other in known]]) @ unit(own)
    best = int(cosines.argmax())
    return f"nearest is {known[best][:12]}, {standing.decided[known[best]].decision} (cosine {cosines[best]:.2f})"


def _number(value: np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None
