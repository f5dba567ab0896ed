"""Every formula against a loop over rows and layers in float64."""

from functools import partial

import numpy as np
import pytest
from numpy.linalg import norm
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from larf_curate.errors import ReferenceSetError
from larf_curate.layers.choice import best_layers, cumulative_share, separation
from larf_curate.signals import AXES, SIGNALS, ReferenceStates
from larf_curate.signals.centred import Whitening
from larf_curate.signals.combined import calibrated as calibrated_signal
from larf_curate.signals.held_out import fold_of, held_out
from larf_curate.signals.logistic import COMPONENT_SIGNALS, INVERSE_STRENGTHS

LAYERS, WIDTH = 3, 24
SIDES = ("unsafe", "safe", "neutral")


def side(count, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 500, size=count).astype(np.float32)
    drawn = {p: rng.normal(size=(count, LAYERS, WIDTH)) * 2 + shift for p in ("last", "prompt", "mean")}
    drawn["last"][..., 0] += np.log(lengths)[:, None]  # one direction follows length
    drawn["prompt"][..., 0] += np.log(lengths)[:, None]
    states = {p: values.astype(np.float32) for p, values in drawn.items()}
    return states | {"length": np.repeat(lengths[:, None, None], LAYERS, axis=1)}


@pytest.fixture(scope="module")
def refs():
    return ReferenceStates(unsafe=side(22, 1, 1.0), safe=side(20, 2, -0.5), neutral=side(40, 3))


@pytest.fixture(scope="module")
def rows():
    return side(9, 4, 0.3)


def cos(a, b):
    return float(a @ b / (norm(a) * norm(b)))


def each(rows, refs, formula):
    """A formula of one row and three sides at one layer, row by row and layer by layer in float64."""

    def at(states, layer):
        return [{p: values[i, layer].astype(float) for p, values in states.items()} for i in range(len(states["last"]))]

    table = [
        [formula(row, *(at(getattr(refs, name), layer) for name in SIDES)) for row in at(rows, layer)]
        for layer in range(LAYERS)
    ]
    return np.array(table).T


def mean_of(side, position="last"):
    return np.mean([row[position] for row in side], axis=0)


def unsafe_similarity(row, unsafe, _safe, neutral):
    mu = mean_of(neutral)
    return np.mean([cos(row["last"] - mu, u["last"] - mu) for u in unsafe])


def answer_similarity(row, unsafe, _safe, neutral):
    mu = mean_of(neutral, "mean")
    return np.mean([cos(row["mean"] - mu, u["mean"] - mu) for u in unsafe])


def larf_centred(row, unsafe, safe, neutral):
    mu = mean_of(neutral)
    near, far = ([cos(row["last"] - mu, r["last"] - mu) for r in rs] for rs in (unsafe, safe))
    return np.mean(near) - np.mean(far)


def inverse_root(neutral):
    covariance = LedoitWolf().fit(np.array([row["last"] for row in neutral])).covariance_
    values, vectors = np.linalg.eigh(covariance)
    return vectors @ np.diag(values**-0.5) @ vectors.T


def larf_whitened(row, unsafe, safe, neutral):
    mu, root = mean_of(neutral), inverse_root(neutral)
    near, far = ([cos(root @ (row["last"] - mu), root @ (r["last"] - mu)) for r in rs] for rs in (unsafe, safe))
    return np.mean(near) - np.mean(far)


def refusal_direction(row, unsafe, _safe, neutral):
    mu = mean_of(neutral, "prompt")
    return cos(row["prompt"] - mu, mean_of(unsafe, "prompt") - mu)


def projection(row, unsafe, safe, _neutral):
    comply, refuse = (mean_of(s, "mean") - mean_of(s, "prompt") for s in (unsafe, safe))
    return (row["mean"] - row["prompt"]) @ (comply - refuse) / norm(comply - refuse)


def pair_cosine(row, *_sides):
    return cos(row["prompt"], row["last"])


def subspace(row, unsafe, safe, _neutral):
    def share(side):
        basis = np.linalg.svd(np.array([r["last"] for r in side]))[2][:16]
        return norm(basis.T @ (basis @ row["last"])) / norm(row["last"])

    return share(unsafe) - share(safe)


def knn(row, unsafe, safe, neutral):
    mu = mean_of(neutral)

    def near(side):
        return np.mean(sorted(cos(row["last"] - mu, r["last"] - mu) for r in side)[-5:])

    return near(unsafe) - near(safe + neutral)


def calibrated(formula):
    """Residual of a least-squares line over log length, in standard deviations of the neutral residuals."""

    def score(row, *sides):
        neutral = sides[2]
        lengths = np.log([r["length"][0] for r in neutral])
        values = [formula(r, *sides) for r in neutral]
        slope, offset = np.polyfit(lengths, values, 1)
        spread = np.std(values - (slope * lengths + offset))
        return (formula(row, *sides) - slope * np.log(row["length"][0]) - offset) / spread

    return score


FORMULAS = {
    "unsafe_similarity": unsafe_similarity,
    "answer_similarity": answer_similarity,
    "larf_centred": larf_centred,
    "larf_whitened": larf_whitened,
    "refusal_direction": refusal_direction,
    "projection": projection,
    "pair_cosine": pair_cosine,
    "subspace": subspace,
    "knn": knn,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_signal_equals_its_formula(name, refs, rows):
    got = SIGNALS[name].fit(refs)(rows)
    assert got.dtype == np.float32
    assert_allclose(got, each(rows, refs, FORMULAS[name]), atol=2e-4)


def test_the_axes_are_residuals_of_length_in_neutral_standard_deviations(refs, rows):
    likeness, ordinary = (
        sum(each(some, refs, calibrated(formula)) for formula in (unsafe_similarity, answer_similarity))
        for some in (rows, refs.neutral)
    )
    want = {
        "harmful": likeness / ordinary.std(axis=0),  # of residuals, which follow no length any more
        "erosion": each(rows, refs, calibrated(refusal_direction)),
    }
    for name in AXES:
        assert_allclose(SIGNALS[name].fit(refs)(rows), want[name], atol=2e-3)
    above = np.where(want["harmful"] > 2, want["harmful"] - 2, 0)
    assert (above > 0).any()
    assert (above == 0).any()
    assert_allclose(SIGNALS["combined"].fit(refs)(rows), want["erosion"] + above, atol=2e-3)


@pytest.mark.parametrize("name", AXES)
def test_calibrated_signals_do_not_follow_the_length_of_neutral_rows(name, refs):
    scores = SIGNALS[name].fit(refs)(refs.neutral)
    lengths = np.log(refs.neutral["length"][:, 0, 0])
    raw = SIGNALS["unsafe_similarity"].fit(refs)(refs.neutral)
    follows = [[abs(np.corrcoef(s[:, layer], lengths)[0, 1]) for layer in range(LAYERS)] for s in (scores, raw)]
    assert max(follows[0]) < 1e-3
    assert max(follows[1]) > 0.2
    assert_allclose(scores.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("name", AXES)
def test_one_is_a_standard_deviation_of_neutral_rows(name, refs):
    assert_allclose(SIGNALS[name].fit(refs)(refs.neutral).std(axis=0), 1, atol=1e-4)


def test_neutral_rows_of_one_length_calibrate_too(refs, rows):
    same = ReferenceStates(
        unsafe=refs.unsafe, safe=refs.safe, neutral=refs.neutral | {"length": np.full((40, LAYERS, 1), 7, np.float32)}
    )
    assert np.isfinite(SIGNALS["combined"].fit(same)(rows)).all()


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_reads_only_the_positions_it_names(name, refs, rows):
    positions = SIGNALS[name].positions
    signal = SIGNALS[name].fit(refs)
    assert_array_equal(signal({p: v for p, v in rows.items() if p in positions}), signal(rows))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_row_scores_alike_alone_and_among_others(name, refs, rows):
    signal = SIGNALS[name].fit(refs)
    alone = np.concatenate([signal({p: v[i : i + 1] for p, v in rows.items()}) for i in range(9)])
    assert_allclose(alone, signal(rows), atol=1e-4)


@pytest.mark.parametrize("name", [n for n in SIGNALS if n not in ("pair_cosine", "projection")])
def test_high_is_unsafe(name, refs):
    scores = [SIGNALS[name].fit(refs)(getattr(refs, side)).mean() for side in SIDES]
    assert scores[0] > max(scores[1:])


def test_whitening_divides_by_the_root_of_the_shrunk_covariance():
    rng = np.random.default_rng(0)
    neutral = rng.normal(size=(30, 2, 50)) * rng.uniform(0.1, 3, size=50) + 5
    states = rng.normal(size=(4, 2, 50)) + 5
    got = Whitening.fit(neutral.astype(np.float32))(states.astype(np.float32))
    for layer in range(2):
        fitted = LedoitWolf().fit(neutral[:, layer])
        values, vectors = np.linalg.eigh(fitted.covariance_)
        root = vectors @ np.diag(values**-0.5) @ vectors.T
        assert_allclose(got[:, layer], (states[:, layer] - fitted.location_) @ root, rtol=1e-3, atol=1e-3)


def pick(states, places):
    return {p: v[places] for p, v in states.items()}


def folds(count):
    """The partition that all that is held out shares: five folds of rows shuffled with seed 0."""
    order = np.arange(count)
    np.random.RandomState(0).shuffle(order)
    return [np.sort(part) for part in np.array_split(order, 5)]


def naive_held_out(name, refs):
    """Scores by side of shape (n, layers), every fold scored by a signal made without it."""
    parts = {side: folds(len(getattr(refs, side)["last"])) for side in SIDES}
    scores = {side: np.zeros((len(getattr(refs, side)["last"]), LAYERS)) for side in SIDES}
    for fold in range(5):
        kept = {
            side: pick(states, np.setdiff1d(np.arange(len(states["last"])), parts[side][fold]))
            for side, states in ((side, getattr(refs, side)) for side in SIDES)
        }
        signal = SIGNALS[name].fit(ReferenceStates(**kept))
        for side in SIDES:
            scores[side][parts[side][fold]] = signal(pick(getattr(refs, side), parts[side][fold]))
    return scores


@pytest.mark.parametrize("name", ["unsafe_similarity", "combined"])
def test_held_out_rows_are_scored_by_signals_made_without_them(name, refs):
    want = naive_held_out(name, refs)
    got = held_out(SIGNALS[name].fit, refs)
    for side in SIDES:
        assert_allclose(getattr(got, side), want[side], atol=1e-5)


def test_sides_that_are_not_left_out_stay_whole(refs):
    seen = []

    def fit(made):
        seen.append([len(getattr(made, side)["last"]) for side in SIDES])
        return lambda states: states["last"][:, :, 0]

    got = held_out(fit, refs, sides=("neutral",))
    assert seen == [[22, 20, 32]] * 5
    assert_array_equal(got.neutral, refs.neutral["last"][:, :, 0])
    assert got.unsafe.shape == got.safe.shape == (0, LAYERS)


def test_held_out_pairs_lie_in_one_fold_and_top_k_stays_within_what_is_left():
    pairs = ReferenceStates(unsafe=side(6, 1), safe=side(6, 2), neutral=side(10, 3), top_k=6)
    assert np.isfinite(held_out(SIGNALS["larf"].fit, pairs).unsafe).all()
    assert_array_equal(fold_of(6), fold_of(6))
    assert sorted(np.bincount(fold_of(6))) == [1, 1, 1, 1, 2]


def test_one_reference_cannot_be_left_out():
    one = ReferenceStates(unsafe=side(1, 1), safe=side(6, 2), neutral=side(10, 3))
    with pytest.raises(ReferenceSetError, match="at least 2"):
        held_out(SIGNALS["larf"].fit, one)


def test_separation_is_the_held_out_distance_from_neutral_rows_and_refusals_in_pooled_deviations(refs):
    scores = naive_held_out("unsafe_similarity", refs)
    unsafe, want = scores["unsafe"], 0
    for others in (scores["neutral"], scores["safe"]):
        pooled = np.sqrt((unsafe.std(0) ** 2 + others.std(0) ** 2) / 2)
        want = want + (unsafe.mean(0) - others.mean(0)) / pooled / 2
    assert_allclose(separation(SIGNALS["unsafe_similarity"].fit, refs), want, rtol=1e-3)


def test_the_best_layers_are_the_three_of_the_middle_that_separate_best():
    blocks, order = 12, [4, 7, 5]
    rng = np.random.default_rng(0)

    def states(count, strength):
        values = rng.normal(size=(count, blocks, 8)).astype(np.float32)
        values[:, :, 0] += strength
        return {"last": values}

    strength = np.full(blocks, 0.5)
    strength[[0, 1, 11]] = 50  # outside the middle half
    for place, block in enumerate(order):
        strength[block] = 9 - place
    refs = ReferenceStates(unsafe=states(30, strength), safe=states(30, 0), neutral=states(30, 0))
    found = best_layers([lambda _refs: lambda rows: rows["last"][:, :, 0]], refs, blocks)
    assert found == tuple(sorted(order))


def test_layers_behind_what_refusals_depend_on_are_chosen_before_ones_that_separate_a_little_better():
    blocks = 12
    rng = np.random.default_rng(0)

    def states(count, strength):
        values = rng.normal(size=(count, blocks, 8)).astype(np.float32)
        values[:, :, 0] += strength
        return {"last": values}

    strength = np.full(blocks, 0.5)
    strength[3:9] = [12, 11, 10, 9, 8, 4]
    refs = ReferenceStates(unsafe=states(30, strength), safe=states(30, 0), neutral=states(30, 0))
    sensitivity = np.full(blocks, -1.0)
    sensitivity[5] = 2

    def fit(_refs):
        return lambda rows: rows["last"][:, :, 0]

    assert best_layers([fit], refs, blocks) == (3, 4, 5)
    assert best_layers([fit], refs, blocks, sensitivity=sensitivity) == (5, 6, 7)
    sensitivity[[5, 11]] = [0, 2]  # behind the middle half: no layer of it carries anything
    assert best_layers([fit], refs, blocks, sensitivity=sensitivity) == (3, 4, 5)


def test_what_a_state_carries_is_the_share_of_sensitivity_up_to_its_block():
    sensitivity = [-1.0, 1.0, 0.0, 3.0, -2.0, 4.0]
    want = [sum(max(s, 0) for s in sensitivity[: block + 1]) / 8 for block in range(6)]
    assert_allclose(cumulative_share(sensitivity), want)
    assert_allclose(cumulative_share([-1.0, 0.0]), [0, 0])


def test_a_layer_where_one_of_two_signals_says_nothing_is_not_chosen():
    blocks = 12
    rng = np.random.default_rng(0)

    def states(count, strength):
        values = rng.normal(size=(count, blocks, 2)).astype(np.float32)
        return {"last": values + strength}

    strength = np.full((blocks, 2), 0.5)
    strength[:, 0] = 6  # separates everywhere
    strength[3:6, 0] = 7
    strength[6:9, 1] = 6
    refs = ReferenceStates(unsafe=states(30, strength), safe=states(30, 0), neutral=states(30, 0))
    fits = [lambda _refs, i=i: lambda rows: rows["last"][:, :, i] for i in range(2)]
    assert best_layers(fits[:1], refs, blocks) == (3, 4, 5)
    assert best_layers(fits, refs, blocks) == (6, 7, 8)


def test_the_logistic_signal_is_the_log_odds_of_a_model_of_left_out_scores(refs, rows):
    fits = [partial(calibrated_signal, part) for part in COMPONENT_SIGNALS]
    kept = [held_out(fit, refs, sides=("unsafe", "neutral")) for fit in fits]
    features = np.concatenate(
        [np.concatenate([getattr(part, side) for side in ("unsafe", "neutral")]) for part in kept], axis=1
    )
    labels = np.repeat([1, 0], [22, 40])
    scaler = StandardScaler().fit(features)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def model(strength):
        return LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)

    def loss(strength):
        at = cross_val_predict(model(strength), scaler.transform(features), labels, cv=folds, method="predict_proba")
        return np.mean([log_loss(labels[test], at[test]) for _, test in folds.split(features, labels)])

    best = model(min(INVERSE_STRENGTHS, key=loss)).fit(scaler.transform(features), labels)
    new = np.concatenate([fit(refs)(rows) for fit in fits], axis=1)
    want = best.decision_function(scaler.transform(new))
    got = SIGNALS["logistic"].fit(refs)(rows)
    assert got.shape == (9, LAYERS)
    assert_allclose(got.mean(axis=1), want, atol=1e-3)
    odd = rows | {"prompt": rows["prompt"].copy()}
    odd["prompt"][:, 1] = 0
    other = SIGNALS["logistic"].fit(refs)(odd)
    assert_array_equal(other[:, [0, 2]], got[:, [0, 2]], "what a layer says comes from that layer alone")
    assert (other[:, 1] != got[:, 1]).all()
