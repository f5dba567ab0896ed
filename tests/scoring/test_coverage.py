from dataclasses import asdict
from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_allclose

from larf_curate.errors import InputError
from larf_curate.scoring.coverage import ConceptSpace, greedy_cover, uncovered


@pytest.fixture(scope="module")
def calibration():
    return np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32) * np.arange(1, 21, dtype=np.float32)


@pytest.fixture(scope="module")
def space(calibration):
    return ConceptSpace(calibration)


def concepts(calibration, states):
    """Principal components in standard deviations, by the covariance's eigenvectors."""
    mean = calibration.astype(float).mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(calibration.astype(float).T))
    order = np.argsort(-values)
    return (states.astype(float) - mean) @ vectors[:, order] / np.sqrt(values[order])


def test_the_criteria_are_those_of_a_loop(calibration, space):
    exemplars = np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32) * 8
    values = np.abs(concepts(calibration, exemplars))
    found = space.coverage(exemplars)
    assert_allclose(found.concepts, np.mean([any(row[j] >= 1 for row in values) for j in range(20)]))
    strongest = {j for row in values for j in sorted(range(20), key=lambda j, row=row: -row[j])[:10]}
    assert_allclose(found.strongest, len(strongest) / 20)
    own = concepts(calibration, calibration)
    signed = concepts(calibration, exemplars)
    bins = [{int((own[:, j] <= row[j]).mean() * 10 // 1) for row in signed} for j in range(20)]
    assert_allclose(found.bins, np.mean([len(hit) / 10 for hit in bins]), atol=0.02)
    pairs = [(i, j) for i in range(20) for j in range(i)]
    together = [any(row[i] >= 0.5 and row[j] >= 0.5 for row in values) for i, j in pairs]
    assert_allclose(found.pairs, np.mean(together))


def test_an_edge_is_covered_from_beyond_most_of_its_cluster():
    rng = np.random.default_rng(0)
    centres = np.eye(40, dtype=np.float32)[:32] * 50
    rows = np.concatenate([centre + rng.normal(size=(10, 40)).astype(np.float32) for centre in centres])
    space = ConceptSpace(rows)
    middles = np.stack([part.mean(axis=0) for part in np.split(rows, 32)])
    found = space.coverage(middles[:8])
    assert (found.clusters, found.edges) == (8 / 32, 0)
    one = space.coverage(middles[:1] + 3 * (rows[:1] - middles[:1]))
    assert (one.clusters, one.edges) == (1 / 32, 1 / 32)


def test_the_calibration_covers_itself_and_one_state_covers_little(calibration, space):
    whole = space.coverage(calibration)
    assert set(asdict(whole).values()) == {1.0}
    one = space.coverage(calibration[:1])
    assert one.strongest == 0.5
    assert one.bins == 0.1
    assert one.clusters == 1 / 32


def test_the_greedy_choice_takes_what_adds_most_first_and_never_a_copy(calibration, space):
    near = np.repeat(calibration[:1], 4, axis=0)
    exemplars = np.concatenate([near, calibration[5:12]])
    chosen = greedy_cover(space, exemplars, 4)
    assert len(set(chosen) & set(range(4))) <= 1

    def mean_of(places):
        found = space.coverage(exemplars[list(places)])
        return np.mean(list(asdict(found).values()))

    assert_allclose(mean_of(chosen[:1]), max(mean_of([i]) for i in range(11)))
    assert_allclose(mean_of(chosen[:2]), max(mean_of([chosen[0], i]) for i in range(11)))
    best = max(mean_of(pair) for pair in permutations(range(11), 2))
    assert mean_of(chosen[:2]) >= (1 - 1 / np.e) * best
    assert len(greedy_cover(space, near, 4)) == 1


def test_clusters_without_an_exemplar_are_named_by_their_nearest_rows():
    rng = np.random.default_rng(0)
    centres = np.eye(40, dtype=np.float32)[:32] * 50
    rows = np.concatenate([centre + rng.normal(size=(5, 40)).astype(np.float32) * 0.1 for centre in centres])
    found = uncovered(rows, centres[:30])
    members = {place for item in found for place in item.nearest}
    assert members <= set(range(len(rows)))
    assert {place // 5 for place in members} >= {30, 31}
    with pytest.raises(InputError, match="the same width"):
        uncovered(rows, centres[:, :5])


def test_two_calibration_states_are_refused():
    with pytest.raises(InputError, match="3 or more"):
        ConceptSpace(np.zeros((2, 4), np.float32))
