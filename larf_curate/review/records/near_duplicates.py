"""Rows so much alike that one decision can serve them all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from larf_curate.errors import InputError
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.vectors import Reduction
from larf_curate.states import Vectors

ALIKE = 0.98
"""Cosine, the common part of all states taken off, from which rows count as near-identical.

With SmolLM2 at a middle layer, about half of the rows that differ from another by one mistyped letter reach it; no two
different rows of a mix of 750 came above 0.95.
"""
_BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class Group:
    """Near-identical rows of a queue.

    Args:
        leader: Row id of the one that scores highest; every other row is near-identical to it.
        size: Number of rows, at least 2.
        shared: Row id and content digest of the rows that the leader's decision serves; empty if each row is decided
            by itself.
    """

    leader: str
    size: int
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the group is called on the server: it stays as long as its leader does."""
        return self.leader[:12]


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of near-identical rows of a push.

    Args:
        by_row: The group of each row that is sent and is in one.
        served: Ids of the rows that are not sent, because the decision on their leader serves them.
    """

    by_row: Mapping[str, Group] = field(default_factory=dict)
    served: frozenset[str] = frozenset()

    @classmethod
    def find(cls, rows: FlaggedRows, reduction: Reduction | None, *, share: bool) -> "Groups":
        """Find the near-identical rows; none without a profile, since only it knows what all states have in common.

        Args:
            rows: Flagged rows, with their states.
            reduction: The reduction of the states.
            share: Whether the decision on the worst row of a group serves the others.

        Raises:
            InputError: If decisions are to be shared and there are no states, or there is no profile.
        """
        if rows.states is None or reduction is None or not reduction.is_of_profile:
            if share:
                wanted = (
                    "a profile (give profile=…)" if rows.states is not None else "larf_state (score with keep_states)"
                )
                raise InputError(f"near-identical rows are known by the model's states: wanted rows with {wanted}")
            return cls()
        order = np.argsort(-np.nan_to_num(rows.scores, nan=-np.inf), kind="stable")
        found = groups_of([rows.ids[i] for i in order], reduction.centred(rows.states)[order])
        if not share:
            groups = [Group(leader=leader, size=1 + len(others)) for leader, others in found.items()]
            return cls(by_row={row: g for g in groups for row in (g.leader, *found[g.leader])})
        served = frozenset(row for others in found.values() for row in others)
        digests = rows.digests(served)
        shared = {leader: {row: digests[row] for row in others} for leader, others in found.items()}
        by_row = {row: Group(leader=row, size=1 + len(others), shared=others) for row, others in shared.items()}
        return cls(by_row=by_row, served=served)


def leaders(units: Vectors, *, alike: float = ALIKE) -> list[int]:
    """Assign each row to the first row before it that it is near-identical to and that is not assigned itself.

    Every row is thus near-identical to its leader; chains of rows, each like the next, are not followed, since their
    ends may differ.

    Args:
        units: Unit vectors, shape (n, d), the rows that should lead first; a zero vector is like no other.
        alike: Least cosine of near-identical rows.

    Returns:
        For each row the index of its leader; its own if it is one.
    """
    found = np.full(len(units), -1)
    for start in range(0, len(units), _BLOCK):
        near = units[start : start + _BLOCK] @ units[start:].T >= alike
        for row, hits in enumerate(near, start):
            if found[row] < 0:
                members = start + np.flatnonzero(hits)
                members = members[members > row]
                found[members[found[members] < 0]] = row
                found[row] = row
    return [int(leader) for leader in found]


def groups_of(row_ids: Sequence[str], units: Vectors, *, alike: float = ALIKE) -> dict[str, list[str]]:
    """Groups of at least two near-identical rows.

    Args:
        row_ids: The rows' ids, those that should lead first.
        units: Their unit vectors; see `leaders`.
        alike: Least cosine of near-identical rows.

    Returns:
        The other rows of each group by its leader.
    """
    found: dict[str, list[str]] = {}
    for row, leader in enumerate(leaders(units, alike=alike)):
        if leader != row:
            found.setdefault(row_ids[leader], []).append(row_ids[row])
    return found
