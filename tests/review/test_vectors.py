import numpy as np
import pytest

from larf_curate.errors import ProfileMismatchError
from larf_curate.profile import cache_profile
from larf_curate.profile.cache import profile_of
from larf_curate.review.records.vectors import Reduction, reduction_for
from tests.fixtures.review_rows import fake_profile


def nearest(vectors, count=10):
    """Naive: the rows with the highest cosine to each."""
    units = np.asarray(vectors, np.float64)
    units = units / np.linalg.norm(units, axis=1, keepdims=True)
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    return np.argsort(-cosines, axis=1)[:, :count]


def agreement(first, second):
    return np.mean([len({*a} & {*b}) / len(a) for a, b in zip(first, second, strict=True)])


def like_states(rows, *, width=300, seed=0):
    """States as models have them: a large common part, few directions that vary much, many that vary little."""
    draw = np.random.default_rng(99)
    common, axes = draw.normal(size=width) * 20, np.linalg.qr(draw.normal(size=(width, width)))[0]
    sizes = 10 / (1 + np.arange(width)) ** 0.7
    return (common + np.random.default_rng(seed).normal(size=(rows, width)) * sizes @ axes).astype(np.float32)


def test_rows_that_were_near_stay_near_better_than_by_chance_directions():
    known, rows = like_states(500), like_states(400, seed=1)
    truth = nearest(rows - known.mean(axis=0))
    principal = agreement(truth, nearest(Reduction.fit(known, name="p")(rows)))
    assert principal > 0.85
    assert principal > agreement(truth, nearest(Reduction.random(300)(rows))) + 0.1


def test_the_directions_are_those_of_the_covariance():
    known = like_states(500, width=40)
    reduction = Reduction.fit(known, name="p", dimensions=10)
    _, vectors = np.linalg.eigh(np.cov(known.astype(np.float64).T))
    overlaps = np.abs(np.sum(vectors[:, ::-1][:, :10] * reduction.directions, axis=0))
    np.testing.assert_allclose(overlaps, 1, atol=1e-3)
    again = Reduction.fit(known, name="p", dimensions=10)
    np.testing.assert_array_equal(reduction.directions, again.directions)


def test_states_that_are_not_wide_lose_nothing():
    known, rows = like_states(200, width=60), like_states(50, width=60, seed=1)
    reduction = Reduction.fit(known, name="p")
    centred = rows - known.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    reduced = reduction(rows)
    np.testing.assert_allclose(reduced @ reduced.T, centred @ centred.T, atol=1e-4)
    np.testing.assert_allclose(reduction.centred(rows), centred, atol=1e-4)


def test_a_profile_of_few_rows_still_keeps_who_is_near():
    known, rows = like_states(12), like_states(400, seed=1)
    reduction = Reduction.fit(known, name="p")
    assert reduction.dimensions == 128
    truth = nearest(rows - known.mean(axis=0))
    only_main = (rows - known.mean(axis=0)) @ reduction.directions[:, :11]
    assert agreement(truth, nearest(reduction(rows))) > agreement(truth, nearest(only_main)) + 0.1
    lengths = np.linalg.norm((rows - known.mean(axis=0)) @ reduction.directions, axis=1)
    ratio = lengths / np.linalg.norm(rows - known.mean(axis=0), axis=1)
    assert abs(np.median(ratio) - 1) < 0.15


def test_an_unusable_state_becomes_zero():
    reduction = Reduction.random(8)
    given = np.array([[np.nan] * 8, [np.inf] * 8, [0] * 8, [1] * 8], np.float32)
    reduced = reduction(given)
    assert (reduced[:3] == 0).all()
    assert np.linalg.norm(reduced[3]) == pytest.approx(1)


def test_the_profile_is_the_one_given_or_the_one_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path))
    profile, states = fake_profile(like_states(40, width=20)), like_states(5, width=20, seed=1)
    scored = {"profile": {"digest": profile.digest}}
    assert profile_of(scored) is None
    assert reduction_for(states, scored).name == "random"
    cache_profile(profile)
    np.testing.assert_array_equal(
        reduction_for(states, scored).directions, reduction_for(states, {}, profile).directions
    )
    assert reduction_for(states, scored).name == profile.digest[:12]
    assert reduction_for(None, scored) is None
    with pytest.raises(ProfileMismatchError, match="another profile"):
        reduction_for(states, {"profile": {"digest": "other"}}, profile)
    with pytest.raises(ProfileMismatchError, match="width 7"):
        reduction_for(states[:, :7], {}, profile)
    (tmp_path / "profiles" / profile.digest / "larf_profile.json").write_text("{")
    assert reduction_for(states, scored).name == "random"
