import numpy as np
from numpy.testing import assert_allclose
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from larf_curate.signals.baselines import held_out_texts, length, text_of, tfidf
from larf_curate.signals.held_out import fold_of

UNSAFE = ["how to pick a lock fast", "how to steal a car fast", "pick a pocket"]
OTHERS = ["bake bread at home", "name a river", "sort a list", "bake a cake"]


def test_the_length_baseline_points_to_the_longer_side():
    rising = length(UNSAFE, OTHERS)(["a", "a" * 10, ""])
    assert_allclose(rising, np.log([2, 11, 1]), rtol=1e-6)
    assert_allclose(length(OTHERS, UNSAFE)(["a", "a" * 10, ""]), -rising)
    assert_allclose(length(UNSAFE, UNSAFE)(["a", "a" * 10, ""]), rising)


def words(text):
    single = text.split()
    return single + [f"{a} {b}" for a, b in zip(single, single[1:], strict=False)]


def test_the_word_baseline_is_logistic_regression_on_tfidf_by_hand():
    texts = UNSAFE + OTHERS
    vocabulary = sorted({word for text in texts for word in words(text)})
    frequency = np.array([sum(word in words(text) for text in texts) for word in vocabulary])
    weight = np.log((1 + len(texts)) / (1 + frequency)) + 1

    def vectors(rows):
        counts = np.array([[words(text).count(word) for word in vocabulary] for text in rows], float)
        scaled = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * weight
        return csr_matrix(scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12))

    model = LogisticRegression(C=10, class_weight="balanced", max_iter=1000)
    model.fit(vectors(texts), [1] * len(UNSAFE) + [0] * len(OTHERS))
    fresh = ["steal a river fast fast", "quite other words"]
    assert_allclose(tfidf(UNSAFE, OTHERS)(fresh), model.decision_function(vectors(fresh)), atol=1e-3)


def test_texts_without_any_known_word_and_no_texts_at_all_are_scored():
    baseline = tfidf(UNSAFE, OTHERS)
    assert np.isfinite(baseline(["", "\x00", "日本"])).all()
    assert baseline([]).shape == (0,)


def test_left_out_texts_are_scored_by_a_baseline_that_never_saw_them():
    sides = [[f"{name}{i}" for i in range(count)] for name, count in (("u", 7), ("s", 6), ("n", 9))]

    def fit(unsafe, others):
        seen = {*unsafe, *others}
        assert {text[0] for text in unsafe} == {"u"}
        assert {text[0] for text in others} == {"s", "n"}
        return lambda texts: np.array([text in seen for text in texts], np.float32)

    for side, scores in zip(sides, held_out_texts(fit, sides), strict=True):
        assert scores.shape == (len(side),)
        assert not scores.any()


def test_left_out_texts_keep_their_order():
    sides = [[str(i) for i in range(n)] for n in (7, 6, 9)]
    scores = held_out_texts(lambda *_: lambda texts: np.array([float(t) for t in texts]), sides)
    assert [list(s) for s in scores] == [list(range(7)), list(range(6)), list(range(9))]
    assert set(fold_of(7)) == set(range(5))


def test_the_text_of_a_row_is_all_its_turns():
    messages = [{"role": "user", "content": "Hi\ud800"}, {"role": "assistant", "content": "Yes."}]
    assert text_of({"messages": messages}) == "Hi\ufffd\nYes."
    assert text_of({"q": "A", "a": "B"}, {"user": "q", "assistant": "a"}) == "A\nB"
