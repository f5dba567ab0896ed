"""Near-duplicate rows, which can share one decision, found by the cosine of their hidden states."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from larf_curate.errors import InputError
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.vectors import Reduction
from larf_curate.states import Vectors

MIN_COSINE = 0.98
"""Least cosine of near-duplicates' centred states.

With SmolLM2 at a middle layer, about half of all rows with one mistyped letter reach it with the original row; no two
different rows of a mix of 750 exceeded 0.95.
"""
_BLOCK = 256  # rows compared at once: bounds the memory for cosines to _BLOCK x n


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of near-duplicate rows.

    Args:
        leader: Row id of the row with the highest score; every other row is a near-duplicate of it.
        size: Number of rows, at least 2.
        shared: Content digests by row id of the rows that the leader's decision also applies to; empty if each row is
            decided separately.
    """

    leader: str
    size: int
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the group on the server; the same in every push in which the leader is the same."""
        return self.leader[:12]


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """The groups of near-duplicate rows in a push.

    Args:
        by_row: Groups by row id, for the rows that are sent and are in a group.
        covered: Ids of the rows that are not sent, because the decision on their leader applies to them.
    """

    by_row: Mapping[str, Group] = field(default_factory=dict)
    covered: frozenset[str] = frozenset()

    @classmethod
    def find(cls, rows: FlaggedRows, reduction: Reduction | None, *, share: bool) -> "NearDuplicates":
        """Find groups of near-duplicates among flagged rows.

        None are found without a profile: all states of a model share a large common part, so that raw cosines are
        high for any two rows, and only a profile tells what to subtract.

        Args:
            rows: Flagged rows with their states.
            reduction: Reduction of the states; its mean is subtracted, its directions are not used.
            share: Whether the decision on the highest-scoring row of a group applies to the others.

        Raises:
            InputError: If decisions are to be shared and states or profile are missing.
        """
        if rows.states is None or reduction is None or not reduction.is_centred:
            if share:
                states = rows.states is not None
                missing = "their profile: give profile=…" if states else "larf_state: score with keep_states"
                raise InputError(f"near-identical rows cannot be grouped without {missing}")
            return cls()
        worst_first = np.argsort(-np.nan_to_num(rows.scores, nan=-np.inf), kind="stable")
        members = group_rows([rows.ids[i] for i in worst_first], reduction.centred(rows.states)[worst_first])
        if not share:
            groups = [Group(leader=leader, size=1 + len(others)) for leader, others in members.items()]
            return cls(by_row={row: g for g in groups for row in (g.leader, *members[g.leader])})
        covered = frozenset(row for others in members.values() for row in others)
        digests = rows.digests(covered)
        shared = {leader: {row: digests[row] for row in others} for leader, others in members.items()}
        by_row = {row: Group(leader=row, size=1 + len(others), shared=others) for row, others in shared.items()}
        return cls(by_row=by_row, covered=covered)

    def led_by(self, rows: Collection[str]) -> "NearDuplicates":
        """Only the groups with these leaders.

        Args:
            rows: Row ids.
        """
        by_row = {row: group for row, group in self.by_row.items() if group.leader in rows}
        return NearDuplicates(by_row=by_row, covered=frozenset(row for g in by_row.values() for row in g.shared))


def leaders(units: Vectors, *, min_cosine: float = MIN_COSINE) -> list[int]:
    """Greedy leader clustering: each row joins the first leader before it that it is near to, else becomes a leader.

    Every row is thus a near-duplicate of its leader. Chains are not followed (as single linkage would), because the
    ends of a chain can differ.

    Args:
        units: Unit vectors, shape (n, d), in order of preference as leaders; a zero vector is near to no other.
        min_cosine: Least cosine to a leader.

    Returns:
        The index of each row's leader; a leader's own index.
    """
    assigned = np.full(len(units), -1)
    for start in range(0, len(units), _BLOCK):
        near = units[start : start + _BLOCK] @ units[start:].T >= min_cosine
        for row, hits in enumerate(near, start):
            if assigned[row] < 0:  # near no leader before it
                members = start + np.flatnonzero(hits)
                members = members[members > row]
                assigned[members[assigned[members] < 0]] = row
                assigned[row] = row
    return [int(leader) for leader in assigned]


def group_rows(row_ids: Sequence[str], units: Vectors, *, min_cosine: float = MIN_COSINE) -> dict[str, list[str]]:
    """Groups of at least two near-duplicate rows.

    Args:
        row_ids: Ids of n rows, in order of preference as leaders.
        units: Their unit vectors, shape (n, d); see `leaders`.
        min_cosine: Least cosine to a leader.

    Returns:
        The other rows of each group by its leader.
    """
    members: dict[str, list[str]] = {}
    for row, leader in enumerate(leaders(units, min_cosine=min_cosine)):
        if leader != row:
            members.setdefault(row_ids[leader], []).append(row_ids[row])
    return members
