from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.preprocessing import StandardScaler

from larf_curate.signals import SIGNALS
from larf_curate.signals.calibration import calibrated as calibrated_signal
from larf_curate.signals.held_out import held_out
from larf_curate.signals.logistic import COMPONENT_SIGNALS, INVERSE_STRENGTHS, _fit
from tests.fixtures.reference_states import LAYERS, drawn_references, drawn_rows


@pytest.fixture(scope="module")
def refs():
    return drawn_references()


@pytest.fixture(scope="module")
def rows():
    return drawn_rows()


def test_features_of_any_scale_count_alike_and_one_that_never_varies_for_nothing():
    rng = np.random.default_rng(0)
    unsafe, neutral = (rng.normal(size=(n, 2, 2)) * [1, 0.01] + shift for n, shift in ((25, [0.5, 0.004]), (40, 0)))
    weights, offset = _fit(unsafe, neutral)
    larger, same = _fit(unsafe * [1, 1000], neutral * [1, 1000])
    assert_allclose(larger * [1, 1000], weights, rtol=1e-3)
    assert same == pytest.approx(offset, rel=1e-3)
    assert np.isfinite(weights).all()
    for part in (unsafe, neutral):
        part[:, 0, 0] = 0
    weights, offset = _fit(unsafe, neutral)
    assert np.isfinite([*weights.ravel(), offset]).all()
    assert weights[0, 0] == 0


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
