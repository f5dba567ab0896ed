from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from larf_curate.columns import content_digest
from larf_curate.errors import InputError
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.near_duplicates import MIN_COSINE, Group, NearDuplicates, leaders
from larf_curate.review.records.vectors import Reduction


def units(rng, n, width=16):
    made = rng.normal(size=(n, width))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def naive(rows, min_cosine):
    """Row by row: the first earlier leader that is near enough."""
    found = []
    for i in range(len(rows)):
        near = [j for j in range(i) if found[j] == j and float(rows[j] @ rows[i]) >= min_cosine]
        found.append(near[0] if near else i)
    return found


@pytest.mark.parametrize("min_cosine", [0.3, 0.6, 0.98])
def test_each_row_goes_to_the_first_leader_that_is_near(min_cosine):
    rng = np.random.default_rng(1)
    rows = np.concatenate([units(rng, 300), np.zeros((3, 16), np.float32)])
    rows = np.concatenate([rows, rows[rng.integers(0, 303, 400)]])
    found = leaders(rows, min_cosine=min_cosine)
    assert found == naive(rows, min_cosine)
    assert all(rows[i] @ rows[leader] >= min_cosine for i, leader in enumerate(found) if leader != i)


def test_a_chain_of_rows_is_no_group():
    angles = np.linspace(0, 1.5, 40)
    chain = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert all(chain[i] @ chain[i + 1] > MIN_COSINE for i in range(39))
    found = leaders(chain)
    assert len(set(found)) > 5
    assert min(chain[i] @ chain[leader] for i, leader in enumerate(found)) >= MIN_COSINE


@pytest.fixture
def rows():
    """Two groups (0, 2, 4) and (1, 5), one row alone and one without state; row 4 scores highest of its group."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(3, 8)) * 5
    states = [base[0], base[1], base[0] + 0.01, base[2], base[0] - 0.01, base[1] + 0.01, np.full(8, np.nan)]
    made = Dataset.from_list(
        [
            {
                "question": f"q{i}",
                "answer": "a",
                "larf_score": score,
                "larf_row_id": f"id{i}",
                "larf_state": None if np.isnan(states[i]).any() else states[i].astype("f2"),
            }
            for i, score in enumerate([0.3, 0.9, 0.2, 0.5, 0.4, 0.1, None])
        ]
    )
    return FlaggedRows.read(made)


def reduction():
    return Reduction.fit(np.random.default_rng(3).normal(size=(50, 8)).astype("f4"), name="p")


def test_all_rows_are_sent_and_say_how_many_are_like_them(rows):
    groups = NearDuplicates.find(rows, reduction(), share=False)
    first, second = Group(leader="id4", size=3), Group(leader="id1", size=2)
    assert groups.by_row == {"id0": first, "id2": first, "id4": first, "id1": second, "id5": second}
    assert rows.without(groups.covered) is rows


def test_of_a_group_only_the_worst_row_is_sent_and_knows_the_others(rows):
    groups = NearDuplicates.find(rows, reduction(), share=True)
    sent = rows.without(groups.covered)
    assert sent.ids == [row["larf_row_id"] for row in sent] == ["id1", "id3", "id4", "id6"]
    np.testing.assert_array_equal(sent.states, rows.states[[1, 3, 4, 6]])
    np.testing.assert_array_equal(sent.scores, rows.scores[[1, 3, 4, 6]])
    assert groups.covered == {"id0", "id2", "id5"}
    assert dict(groups.by_row["id4"].shared) == {f"id{i}": content_digest(rows.rows[i]) for i in (0, 2)}
    assert set(groups.by_row) == {"id1", "id4"}


def test_without_a_profile_or_states_nothing_is_grouped_and_asking_for_it_is_refused(rows):
    assert NearDuplicates.find(rows, Reduction.random(8), share=False) == NearDuplicates()
    with pytest.raises(InputError, match="give profile="):
        NearDuplicates.find(rows, Reduction.random(8), share=True)
    with pytest.raises(InputError, match="keep_states"):
        NearDuplicates.find(replace(rows, states=None), None, share=True)
