"""Rows assigned to people, against what an assignment must be."""

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from larf_curate.review.people.balance import Assignable, choose

PEOPLE = list("abcdef")


def row(number, *, group=None, people=(), lacking=2):
    return Assignable(row_id=f"{number * 7919 % 10_007:05}", group=group, people=tuple(people), lacking=lacking)


def loads(chosen):
    return Counter(name for names in chosen.values() for name in names)


@pytest.mark.parametrize(
    ("count", "n", "k"), [(300, 6, 2), (301, 6, 3), (97, 5, 2), (50, 3, 2), (40, 4, 1), (30, 2, 2), (1, 6, 3)]
)
def test_each_row_gets_k_people_each_person_as_many_rows_and_each_pair_too(count, n, k):
    rows = [row(i, lacking=k) for i in range(count)]
    chosen = choose(rows, PEOPLE[:n])
    assert set(chosen) == {r.row_id for r in rows}
    assert all(len(set(names)) == k for names in chosen.values())
    per_person = loads(chosen)
    assert max(per_person.values()) - min(per_person[name] for name in PEOPLE[:n]) <= 1
    pairs = Counter(pair for names in chosen.values() for pair in combinations(sorted(names), 2))
    if k > 1 and count >= 50:
        counts = [pairs[pair] for pair in combinations(PEOPLE[:n], 2)]
        assert max(counts) - min(counts) <= 2


def test_the_order_of_rows_does_not_matter():
    rows = [row(i, group=f"g{i // 3}" if i % 2 else None) for i in range(60)]
    assert choose(rows, PEOPLE) == choose(rows[::-1], PEOPLE)


def test_near_duplicates_go_to_the_same_people_also_those_that_come_later():
    rows = [row(i, group=f"g{i // 4}" if i < 40 else None) for i in range(100)]
    chosen = choose(rows, PEOPLE)
    of_group = {}
    for r in rows[:40]:
        of_group.setdefault(r.group, set()).add(frozenset(chosen[r.row_id]))
    assert [len(sets) for sets in of_group.values()] == [1] * 10
    assert max(loads(chosen).values()) - min(loads(chosen).values()) <= 1
    had = [row(i, group=f"g{i // 4}", people=chosen[row(i).row_id], lacking=0) for i in range(0, 40, 4)]
    later = [row(200 + i, group=f"g{i}") for i in range(10)]
    again = choose([*had, *later], PEOPLE)
    same = [set(again[r.row_id]) == set(before.people) for r, before in zip(later, had, strict=True)]
    assert sum(same) >= 8  # where it keeps the load even


def test_a_group_larger_than_a_fair_share_is_split():
    chosen = choose([row(i, group="g", lacking=1) for i in range(90)], PEOPLE[:3])
    assert set(loads(chosen).values()) == {30}


def test_who_joins_later_gets_rows_that_lack_people_and_no_other_row_changes():
    first = choose([row(i) for i in range(40)], PEOPLE[:2])
    rows = [row(i, people=first[row(i).row_id], lacking=0) for i in range(40)]
    assert choose(rows, PEOPLE[:3]) == {}
    chosen = choose([*rows, *(row(i) for i in range(40, 60))], PEOPLE[:3])
    assert set(chosen) == {row(i).row_id for i in range(40, 60)}
    assert loads(chosen)["c"] == 20  # who has none yet is next


@given(
    st.lists(
        st.tuples(st.sampled_from([None, "g", "h"]), st.sets(st.sampled_from(PEOPLE), max_size=3), st.integers(0, 3)),
        max_size=40,
    ),
    st.integers(1, 6),
)
def test_nobody_loses_a_row_and_nobody_gets_one_twice(found, n):
    rows = [row(i, group=g, people=sorted(people), lacking=lacking) for i, (g, people, lacking) in enumerate(found)]
    chosen = choose(rows, PEOPLE[:n])
    for r in rows:
        names = chosen.get(r.row_id, r.people)
        assert names[: len(r.people)] == r.people
        assert len(set(names)) == len(names)
        free = len(set(PEOPLE[:n]) - set(r.people))
        assert len(names) - len(r.people) == min(r.lacking, free)
