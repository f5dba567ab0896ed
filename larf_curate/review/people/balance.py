"""Choose people for rows: the same number for each row, and about as many rows for each person."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations


@dataclass(frozen=True, kw_only=True)
class Assignable:
    """A row that people can be chosen for.

    Args:
        row_id: The row's ``larf_row_id``.
        group: Name of its group of near-duplicates; None if it has none.
        people: Those who have the row already.
        lacking: How many more people it needs.
    """

    row_id: str
    group: str | None
    people: tuple[str, ...]
    lacking: int


def choose(rows: Sequence[Assignable], people: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Choose people for the rows that lack some; nobody loses a row.

    The result depends on the rows and the order of the people only. Each person shares rows with each other one about
    as often, so that their agreement can be told for every pair. Near-duplicates go to the same people, unless their
    group is larger than a fair share.

    Args:
        rows: All rows of the queue.
        people: Names of those among whom to choose, each once.

    Returns:
        The people by row id, those who had it first; only rows that got some. A row gets fewer than it lacks if all
        people have it.
    """
    balance = _Balance(rows, people)
    for block in _blocks([row for row in rows if row.lacking > 0], balance.fair_share):
        balance.give(block)
    return balance.chosen


class _Balance:
    """How many rows each person and each pair of people has."""

    def __init__(self, rows: Sequence[Assignable], people: Sequence[str]) -> None:
        self.chosen: dict[str, tuple[str, ...]] = {}
        self._people = people
        self._load = Counter(name for row in rows for name in row.people)
        self._pairs = Counter(pair for row in rows for pair in combinations(sorted(row.people), 2))
        self._of_group = _people_of_groups(rows)
        wanted = sum(row.lacking for row in rows)
        self.fair_share = -(-(sum(self._load[name] for name in people) + wanted) // len(people))

    def give(self, block: Sequence[Assignable]) -> None:
        """Choose people for rows that belong together and have the same people so far."""
        names = list(block[0].people)
        familiar = self._of_group.get(block[0].group or "", ())
        for _ in range(block[0].lacking):
            candidates = [name for name in self._people if name not in names]
            if not candidates:
                break
            name = min(candidates, key=lambda name: self._rank(name, names, familiar, len(block)))
            for other in names:
                self._pairs[self._pair(name, other)] += len(block)
            self._load[name] += len(block)
            names.append(name)
        self.chosen |= {row.row_id: tuple(names) for row in block if len(names) > len(row.people)}

    def _rank(
        self, name: str, others: Iterable[str], familiar: Collection[str], rows: int
    ) -> tuple[bool, int, int, int]:
        """Sort key of a candidate; the lowest is chosen."""
        known = name in familiar and self._load[name] + rows <= self.fair_share
        # By load alone, the last two of each round would always be left for each other.
        together = sum(self._pairs[self._pair(name, other)] for other in others)
        return not known, self._load[name] + together, self._load[name], self._people.index(name)

    @staticmethod
    def _pair(first: str, second: str) -> tuple[str, str]:
        return (first, second) if first < second else (second, first)


def _people_of_groups(rows: Iterable[Assignable]) -> Mapping[str, Collection[str]]:
    """The people who have rows of each group of near-duplicates."""
    people: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.group:
            people[row.group].update(row.people)
    return people


def _blocks(rows: Iterable[Assignable], fair_share: int) -> list[list[Assignable]]:
    """Rows that go to the same people: near-duplicates with the same people so far; the largest blocks first.

    Later, smaller blocks even out what the larger ones leave uneven.
    """
    together: defaultdict[tuple[str, tuple[str, ...], int], list[Assignable]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.row_id):
        together[row.group or f"row {row.row_id}", row.people, row.lacking].append(row)
    blocks = [
        block[start : start + fair_share] for block in together.values() for start in range(0, len(block), fair_share)
    ]
    return sorted(blocks, key=lambda block: (-len(block), block[0].row_id))
