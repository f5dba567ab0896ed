"""Every formula against a loop over rows and layers in float64."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.linalg import norm
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.covariance import LedoitWolf

from larf_curate.errors import ReferenceSetError
from larf_curate.signals import AXES, SIGNALS, ReferenceStates
from larf_curate.signals.calibration import calibrated
from larf_curate.signals.centred import Whitening
from larf_curate.signals.discriminant import discriminant
from tests.fixtures.reference_states import LAYERS, SIDES, drawn_references, drawn_rows


@pytest.fixture(scope="module")
def refs():
    return drawn_references()


@pytest.fixture(scope="module")
def rows():
    return drawn_rows()


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


def residuals(formula):
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


def naive_direction(high, low, others=()):
    """Discriminant of one layer by inverting the shrunken covariance within groups of shape (n, d)."""
    centred = np.concatenate([group - group.mean(axis=0) for group in (high, *low, *others)])
    covariance = centred.T @ centred / len(centred)
    isotropic = np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    difference = high.mean(axis=0) - np.mean([group.mean(axis=0) for group in low], axis=0)
    return np.linalg.inv(covariance / 2 + isotropic / 2) @ difference


def naive_axis(refs, rows, position, low, others=()):
    """Projections of rows on the direction of each layer, in standard deviations of neutral rows around their mean."""
    groups = {side: getattr(refs, side)[position].astype(float) for side in SIDES}
    groups["borderline"] = refs.borderline if refs.borderline is None else refs.borderline.astype(float)
    columns = []
    for layer in range(LAYERS):
        at = {side: None if states is None else states[:, layer] for side, states in groups.items()}
        way = naive_direction(at["unsafe"], [at[side] for side in low], [at[side] for side in others])
        ordinary = at["neutral"] @ way
        columns.append((rows[position][:, layer].astype(float) @ way - ordinary.mean()) / ordinary.std())
    return np.array(columns).T


def test_compliance_is_not_fitted_to_safe_answers_that_are_no_refusals(refs):
    with pytest.raises(ReferenceSetError, match="references that refuse"):
        SIGNALS["compliance"].fit(replace(refs, borderline=None))


def test_the_axes_and_the_default_signal_are_their_formulas(refs, rows):
    likeness, ordinary = (
        sum(each(some, refs, residuals(formula)) for formula in (unsafe_similarity, answer_similarity))
        for some in (rows, refs.neutral)
    )
    want = {
        "harmful": likeness / ordinary.std(axis=0),  # of residuals, which follow no length any more
        "erosion": naive_axis(refs, rows, "prompt", ("neutral", "borderline")),
        "compliance": naive_axis(refs, rows, "mean", ("safe",), ("neutral",)),
    }
    for name in AXES:
        assert_allclose(SIGNALS[name].fit(refs)(rows), want[name], atol=2e-3)
    above = np.maximum(want["harmful"] - 2, 0)
    below = np.minimum(want["compliance"], 0)
    for part in (above, below):
        assert (part != 0).any()
        assert (part == 0).any()
    assert_allclose(SIGNALS["combined"].fit(refs)(rows), want["erosion"] + above + 2 * below, atol=4e-3)


def test_without_refusals_among_the_references_compliance_and_borderline_prompts_do_not_count(refs, rows):
    without = replace(refs, borderline=None)
    erosion = naive_axis(without, rows, "prompt", ("neutral",))
    assert_allclose(SIGNALS["erosion"].fit(without)(rows), erosion, atol=2e-3)
    excess = np.maximum(SIGNALS["harmful"].fit(without)(rows) - 2, 0)
    assert_allclose(SIGNALS["combined"].fit(without)(rows), erosion + excess, atol=2e-3)


def test_a_discriminant_of_states_without_variance_is_their_difference():
    high, low = (np.full((4, LAYERS, 5), value, np.float32) for value in (3, 1))
    assert_array_equal(discriminant(high, [low]), np.full((LAYERS, 5), 2))


def test_harmful_does_not_follow_the_length_of_neutral_rows(refs):
    scores = SIGNALS["harmful"].fit(refs)(refs.neutral)
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


@pytest.mark.parametrize("length", [7, 33, 100])
def test_neutral_rows_of_one_length_leave_the_score_without_its_effect(length, refs, rows):
    lengths = {"length": np.full((40, LAYERS, 1), length, np.float32)}
    same = ReferenceStates(unsafe=refs.unsafe, safe=refs.safe, neutral=refs.neutral | lengths)
    values = {
        name: each(states, same, answer_similarity) for name, states in (("rows", rows), ("neutral", same.neutral))
    }
    want = (values["rows"] - values["neutral"].mean(axis=0)) / values["neutral"].std(axis=0)
    assert_allclose(calibrated(SIGNALS["answer_similarity"].fit, same)(rows), want, atol=2e-3)


def test_a_signal_that_is_the_same_for_all_neutral_rows_is_not_divided_by_nothing():
    constant = {"last": np.zeros((12, 1, 4), np.float32), "length": np.arange(1, 13, dtype=np.float32)[:, None, None]}
    refs = ReferenceStates(unsafe=constant, safe=constant, neutral=constant)
    signal = calibrated(lambda _refs: lambda states: states["last"][:, :, 0], refs)
    assert_array_equal(signal(constant | {"last": constant["last"] + 3}), np.full((12, 1), 3))


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
