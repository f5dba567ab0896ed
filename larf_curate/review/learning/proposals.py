"""Proposals of records to review next, with the reason for each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from larf_curate.errors import InputError
from larf_curate.review.argilla.marks import mark
from larf_curate.review.decisions.responses import ReviewedRecord
from larf_curate.review.learning import farthest
from larf_curate.review.learning.snapshot import Snapshot
from larf_curate.review.records.excerpt import row_texts
from larf_curate.review.sampling.stage import read_sampling
from larf_curate.review.strategies import STRATEGIES, Strategy
from larf_curate.signals.protocol import unit

CONFLICT = "conflict"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A record proposed for review.

    Args:
        row_id: The row's ``larf_row_id``.
        record_id: Id of the record on the server.
        why: The reason, in words.
        score: Learned score, higher is worse; None if the row could not be scored.
        machine_score: ``larf_score``; None if the row could not be scored.
        chance: Estimated probability that a person removes the row, in [0, 1]; None if it could not be scored.
        conflict: Whether enough annotators have answered and they disagree; they find it under *submitted*.
        text: Beginning of the request and of the answer, on one line.
    """

    row_id: str
    record_id: str
    why: str
    score: float | None
    machine_score: float | None
    chance: float | None
    conflict: bool = False
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """Records proposed for review.

    Args:
        by: Strategy that chose the records: ``score``, ``uncertain``, ``different`` or ``random``.
        rows: The records, in the order in which to review them.
        url: Link that shows the undecided ones among them, and no others.
        conflicts_url: Link that shows those on which annotators disagree; None if there are none.
        summary: Number of decisions and held-out accuracy of the ranking; see `Learned.summary`.
    """

    by: str
    rows: tuple[Proposal, ...]
    url: str
    conflicts_url: str | None
    summary: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conflicts:
    """Records on which annotators disagree, or that have an unfinished edit, sent back to those who answered.

    Args:
        votes: Decisions by annotator, by row id, where they differ.
        unfinished: Annotators by row id whose edit has no corrected answer.
        texts: Beginning of each of these rows, by row id.
        url: Link that shows each annotator the ones that they answered, to answer again.
    """

    votes: Mapping[str, Mapping[str, str]]
    unfinished: Mapping[str, tuple[str, ...]]
    texts: Mapping[str, str]
    url: str


def propose(snapshot: Snapshot, *, by: str = "score", n: int = 10) -> Proposals:
    """Choose undecided records of the queue, and mark them on the server so that a link shows only them.

    Args:
        snapshot: The queue and its ranking.
        by: ``score``: highest learned score. ``uncertain``: annotators disagree, or else the probability of removal is
            closest to 1/2. ``different``: farthest, in the space of states, from all decided rows and from each other.
            ``random``: the random rows of a push by expected harm, in their order.
        n: Number of records, at least 1; fewer if not so many are undecided.

    Raises:
        InputError: If ``by`` is not a strategy, or n is below 1.
    """
    if by not in STRATEGIES or n < 1:
        raise InputError(f"wanted at least 1 row by one of {', '.join(STRATEGIES)}, got {n} by {by!r}")
    pending = [r["external_id"] for r in snapshot.records if r["status"] != "completed"]
    undecided = [row for row in pending if row in snapshot.indices and row not in snapshot.decided]
    conflicts = disagreements(snapshot.reviewed) if by == "uncertain" else {}
    chosen = [*list(conflicts)[:n]]
    rest = [row for row in undecided if row not in conflicts]
    choose = CHOOSERS[by]
    chosen += choose(snapshot, rest, n - len(chosen)) if n > len(chosen) else []
    done = {record.row_id for record in snapshot.reviewed if record.done}
    rows = _proposals(snapshot, by, chosen, conflicts, done)
    mark(snapshot.store, snapshot.records, by, chosen)
    return Proposals(
        by=by,
        rows=rows,
        url=snapshot.store.link(proposed=by),
        # A completed record is in nobody's pending queue; those who answered find it under "submitted".
        conflicts_url=snapshot.store.link(status="submitted", proposed=by) if any(r.conflict for r in rows) else None,
        summary=snapshot.learned.summary(),
    )


def disagreements(reviewed: Iterable[ReviewedRecord]) -> dict[str, dict[str, str]]:
    """Decisions by annotator, by row id, on the records on which annotators disagree."""
    votes = {record.row_id: {j.annotator: j.decision or "" for j in record.counted} for record in reviewed}
    return {row: by_annotator for row, by_annotator in votes.items() if len(set(by_annotator.values())) > 1}


def _highest(snapshot: Snapshot, rows: Sequence[str], n: int) -> list[str]:
    """The n rows with the highest learned score; rows that could not be scored come last."""
    scores = np.array([snapshot.learned.scores[snapshot.indices[row]] for row in rows])
    return [rows[i] for i in np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:n]]


def _least_certain(snapshot: Snapshot, rows: Sequence[str], n: int) -> list[str]:
    """The n rows with a probability of removal closest to 1/2; rows that could not be scored come last."""
    chances = np.array([snapshot.learned.chances[snapshot.indices[row]] for row in rows])
    return [rows[i] for i in np.argsort(np.nan_to_num(abs(chances - 0.5), nan=1.0), kind="stable")[:n]]


def _most_different(snapshot: Snapshot, rows: Sequence[str], n: int) -> list[str]:
    """The n rows least similar to decided rows and to each other; rows without a state are left out."""
    decided = [snapshot.indices[row] for row in snapshot.decided]
    # By score, because `farthest` starts with the first candidate if nothing is decided, and breaks ties by order.
    candidates = [snapshot.indices[row] for row in _highest(snapshot, rows, len(rows))]
    candidates = [index for index in candidates if snapshot.learned.directions[index].any()]
    return [snapshot.row_ids[index] for index in farthest(snapshot.learned.directions, decided, candidates, n)]


def _drawn_first(snapshot: Snapshot, rows: Sequence[str], n: int) -> list[str]:
    """The first n random rows, from which the number of harmful rows left is estimated."""
    sampled = read_sampling(record.sampling for record in snapshot.reviewed if record.sampling)
    if not sampled.stages:
        raise InputError("the queue has no random rows: push with --strategy harm --budget N first")
    undecided = set(rows)
    return [row for stage in sampled.by_stage for row in stage.random if row in undecided][:n]


CHOOSERS: dict[Strategy, Callable[[Snapshot, Sequence[str], int], list[str]]] = {
    "score": _highest,
    "uncertain": _least_certain,
    "different": _most_different,
    "random": _drawn_first,
}


def _proposals(
    snapshot: Snapshot, by: str, chosen: Sequence[str], conflicts: Mapping[str, Mapping[str, str]], done: set[str]
) -> tuple[Proposal, ...]:
    ids = {record["external_id"]: record["id"] for record in snapshot.records}
    texts = row_texts(snapshot.records, set(chosen))
    machine_scores = dict(zip(snapshot.row_ids, snapshot.machine_scores, strict=True))
    rows = []
    for row in chosen:
        index = snapshot.indices.get(row)  # None for a conflict on a row that is not in the selection
        score, chance = (
            (None, None)
            if index is None
            else (_number(snapshot.learned.scores[index]), _number(snapshot.learned.chances[index]))
        )
        rows.append(
            Proposal(
                row_id=row,
                record_id=ids[row],
                why=_reason(snapshot, by, row, conflicts.get(row), score, chance),
                score=score,
                machine_score=machine_scores.get(row),
                chance=chance,
                conflict=row in done,
                text=texts[row],
            )
        )
    return tuple(rows)


def _reason(
    snapshot: Snapshot,
    by: str,
    row: str,
    votes: Mapping[str, str] | None,
    score: float | None,
    chance: float | None,
) -> str:
    if votes:
        return "annotators disagree: " + ", ".join(f"{name} {decision}" for name, decision in votes.items())
    if score is None or chance is None:
        return "could not be scored: only a person can judge it"
    if by == "random":
        return f"drawn at random, to estimate how many harmful rows are left; chance of removal {chance:.0%}"
    near = _nearest(snapshot, row)
    if by == "different":
        return f"unlike all decided rows: {near}" if near else "nothing decided yet: unlike the rows before it"
    reason = {
        "score": f"learned score {score:.2f}, chance of removal {chance:.0%}",
        "uncertain": f"chance of removal {chance:.0%}, close to even",
    }[by]
    return f"{reason}; {near}" if near else reason


def _nearest(snapshot: Snapshot, row: str) -> str:
    """The decided row that is most similar to a row, in words; empty if there is none or the row has no state."""
    decided = list(snapshot.decided)
    direction = snapshot.learned.directions[snapshot.indices[row]]
    if not decided or not direction.any():
        return ""
    cosines = unit(snapshot.learned.directions[[snapshot.indices[other] for other in decided]]) @ unit(direction)
    best = int(cosines.argmax())
    nearest = snapshot.decided[decided[best]]
    return f"nearest is {decided[best][:12]}, {nearest.decision} (cosine {cosines[best]:.2f})"


def _number(value: np.floating[Any]) -> float | None:
    """A finite number; None for NaN and infinities, which JSON cannot represent."""
    return float(value) if np.isfinite(value) else None
