import numpy as np
import pytest
from datasets import Dataset, Features, List, Value
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from sklearn.metrics import average_precision_score, roc_auc_score

from larf_curate.errors import InputError
from larf_curate.review.learning import References, StoredRows, farthest, learn, rank
from larf_curate.review.learning.inputs import DecidedRows
from larf_curate.review.learning.regression import map_estimate
from larf_curate.review.learning.space import Space

WIDTH = 12
NONE = (np.array([], np.intp), np.array([], bool))


def stored(states, scores=None, signals=None, has_state=None):
    n = len(states) if has_state is None else len(has_state)
    return StoredRows(
        scores=np.zeros(n) if scores is None else np.asarray(scores, np.float64),
        signals=np.empty((n, 0)) if signals is None else np.asarray(signals, np.float64),
        states=np.asarray(states, np.float16),
        has_state=np.ones(n, bool) if has_state is None else np.asarray(has_state),
    )


def two_kinds(n=200, harmful=20, seed=0):
    """States around an offset, harmful rows pushed one way; scores that say nothing."""
    rng = np.random.default_rng(seed)
    bad = np.arange(n) % (n // harmful) == 0
    states = 5 + rng.normal(size=(n, WIDTH)) * 0.7
    states[bad, 0] += 3
    return stored(states, rng.normal(size=n)), bad


def references(seed=1, m=30):
    rng = np.random.default_rng(seed)
    unsafe, safe, neutral = (5 + rng.normal(size=(m, WIDTH)).astype("f4") * 0.7 for _ in range(3))
    unsafe[:, 0] += 3
    return References(unsafe=unsafe, safe=safe, neutral=neutral)


def table(n=6, seed=0):
    rng = np.random.default_rng(seed)
    features = Features(
        {
            "text": Value("string"),
            "larf_row_id": Value("string"),
            "larf_score": Value("float32"),
            "larf_signals": {"harmful": Value("float32"), "erosion": Value("float32")},
            "larf_state": List(Value("float16"), length=WIDTH),
        }
    )
    rows = [
        {
            "text": f"row {i}",
            "larf_row_id": f"id-{i}",
            "larf_score": float(rng.normal()),
            "larf_signals": {"harmful": float(rng.normal()), "erosion": float(rng.normal())},
            "larf_state": rng.normal(size=WIDTH).astype("f2").tolist(),
        }
        for i in range(n)
    ]
    rows[2] |= {"larf_score": None, "larf_signals": None, "larf_state": None}
    return Dataset.from_list(rows, features=features)


@pytest.mark.parametrize("refs", [None, references()])
def test_without_decisions_the_score_is_exactly_the_machines(refs):
    dataset = table()
    learned = learn(dataset, {"id-0": "unsure", "elsewhere": "remove"}, references=refs)
    assert learned.add_to(dataset)["larf_learned_score"][:] == dataset["larf_score"][:]
    assert (learned.removed, learned.kept, learned.held_out) == (0, 0, None)
    chances = [chance for chance in learned.chances if not np.isnan(chance)]
    assert len(chances) == 5
    assert all(0 < chance < 1 for chance in chances)


def test_the_machines_score_stays_and_the_learned_one_stands_beside_it():
    dataset = table()
    told = {"id-0": "remove", "id-1": "keep", "id-3": "edit"}
    learned = learn(dataset, told)
    once = learned.add_to(dataset)
    assert once["larf_score"][:] == dataset["larf_score"][:]
    assert once.features["larf_learned_score"] == Value("float32")
    assert once["larf_learned_score"][2] is None
    assert once["larf_learned_score"][:] != dataset["larf_score"][:]
    assert learned.add_to(once).column_names == once.column_names
    assert learned.summary() == {"decisions": 3, "removed": 2, "kept": 1, "earlier": 0, "held_out": None}


def test_stored_rows_are_read_as_they_are_in_any_order_and_layout():
    dataset = table()
    chosen = dataset.select([5, 2, 0])
    for source in (chosen, Dataset.from_list(chosen.to_list())):  # fixed lists with an order aside, and loose ones
        rows = StoredRows.of(source)
        assert_array_equal(rows.has_state, [True, False, True])
        assert_allclose(rows.states, [dataset[5]["larf_state"], dataset[0]["larf_state"]], atol=1e-3)
        assert_allclose(rows.scores, [dataset[5]["larf_score"], np.nan, dataset[0]["larf_score"]], rtol=1e-6)
        assert sorted(rows.signals[0]) == pytest.approx(sorted(dataset[5]["larf_signals"].values()))
        assert np.isnan(rows.signals[1]).all()


def test_rows_without_scores_states_or_ids_are_refused():
    with pytest.raises(InputError, match="keep_states"):
        learn(table().remove_columns("larf_state"), {})
    with pytest.raises(InputError, match="larf_row_id"):
        learn(table().remove_columns("larf_row_id"), {})
    rows, _ = two_kinds()
    narrow = References(**{side: np.zeros((2, 3), "f4") for side in ("unsafe", "safe", "neutral")})
    with pytest.raises(InputError, match="references of width 12"):
        rank(rows, *NONE, narrow)


def test_the_weights_are_those_of_the_highest_posterior():
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(40, 5)) * 3, rng.random(40)
    counts, mean, spread = rng.random(40) * 2, rng.normal(size=5), rng.random(5) + 0.3

    def loss(weights):
        chance = 1 / (1 + np.exp(-(features @ weights)))
        likelihood = (targets * np.log(chance) + (1 - targets) * np.log(1 - chance)) @ counts
        return -likelihood + (((weights - mean) / spread) ** 2).sum() / 2

    want = minimize(loss, mean, tol=1e-12).x
    assert_allclose(map_estimate(features, targets, counts, prior_mean=mean, prior_std=spread), want, atol=1e-4)


def test_projected_states_are_centred_unit_vectors():
    rng = np.random.default_rng(0)
    states = (3 + rng.normal(size=(5000, WIDTH))).astype("f2")
    rows = stored(states)
    space = Space.of(rows, np.array([0]), references())
    centred = states.astype("f8") - references().neutral.mean(axis=0)
    want = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert_allclose(space(states) @ space.basis.T, want, atol=1e-5)  # 12 directions lose nothing


@pytest.mark.parametrize("refs", [None, references()])
def test_rows_like_removed_ones_rise_and_rows_like_kept_ones_fall(refs):
    rows, bad = two_kinds()
    places = np.r_[np.flatnonzero(bad)[:6], np.flatnonzero(~bad)[:6]]
    learned = rank(rows, places, bad[places], refs)
    rest = np.setdiff1d(np.arange(len(bad)), places)
    assert roc_auc_score(bad[rest], rows.scores[rest]) < 0.7
    assert roc_auc_score(bad[rest], learned.scores[rest]) > (0.95 if refs else 0.8)
    assert_array_equal(np.argsort(learned.chances[rest]), np.argsort(learned.scores[rest], kind="stable"))


@pytest.mark.parametrize("side", [True, False])
def test_decisions_of_one_side_move_rows_like_them_and_hardly_others(side):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(300, WIDTH)) * 0.05
    group = np.arange(300) % 3
    states[np.arange(300), group] += 1
    states -= states.mean(axis=0)
    rows = stored(states, rng.normal(size=300))
    places = np.flatnonzero(group == 0)[:30]
    learned = rank(rows, places, np.full(30, side))
    moved = learned.scores - rows.scores
    assert np.isfinite(learned.scores).all()
    assert ((moved[group == 0] > 0) == side).mean() > 0.8
    assert abs(moved[group == 0].mean()) > 2 * abs(moved[group != 0].mean())
    others = group == 1
    assert np.corrcoef(learned.scores[others], rows.scores[others])[0, 1] > 0.8  # within a group the machine's order


def test_one_decision_lets_the_references_speak():
    rows, bad = two_kinds()
    place = np.flatnonzero(~bad)[:1]
    assert roc_auc_score(bad, rank(rows, place, np.array([False]), references()).scores) > 0.65
    without = roc_auc_score(bad, rank(rows, place, np.array([False])).scores)
    assert roc_auc_score(bad, rank(rows, place, np.array([False]), references()).scores) > without


def test_a_wrong_click_is_outweighed():
    rows, bad = two_kinds(400, 40)
    places = np.r_[np.flatnonzero(bad)[:15], np.flatnonzero(~bad)[:15]]
    clicks = bad[places]
    clicks[[0, 20]] ^= True
    learned = rank(rows, places, clicks, references())
    rest = np.setdiff1d(np.arange(len(bad)), places)
    assert roc_auc_score(bad[rest], learned.scores[rest]) > 0.95


def test_a_row_without_a_state_is_ranked_by_its_score_alone():
    rows, bad = two_kinds(40, 10)
    has_state = np.arange(41) < 40
    grown = stored(rows.states, [*rows.scores, 0.5], has_state=has_state)
    learned = rank(grown, np.arange(10), bad[:10])
    assert np.isfinite(learned.scores).all()
    assert not learned.directions[40].any()
    nothing = stored(np.empty((0, 0)), rows.scores, has_state=np.zeros(40, bool))
    assert np.isfinite(rank(nothing, np.arange(10), bad[:10], references()).scores).all()


def test_held_out_figures_are_of_decisions_that_were_left_out():
    rows, bad = two_kinds(600, 60)
    places = np.arange(300)
    figures = rank(rows, places, bad[places]).held_out
    assert figures.auroc > 0.95
    assert figures.enough
    assert figures.machine_auroc == pytest.approx(roc_auc_score(bad[:300], rows.scores[:300]))
    assert figures.machine_average_precision == pytest.approx(average_precision_score(bad[:300], rows.scores[:300]))
    by_chance = np.random.default_rng(0).permutation(bad[places])
    assert 0.35 < rank(rows, places, by_chance).held_out.auroc < 0.65  # seen ones would be predicted far better


def test_held_out_figures_say_when_there_are_too_few_decisions():
    rows, bad = two_kinds()
    one = np.r_[np.flatnonzero(bad)[:1], np.flatnonzero(~bad)[:30]]
    assert rank(rows, one, bad[one]).held_out is None
    nine = np.r_[np.flatnonzero(bad)[:9], np.flatnonzero(~bad)[:30]]
    assert not rank(rows, nine, bad[nine]).held_out.enough


def test_the_farthest_rows_are_those_a_plain_search_finds():
    directions = np.random.default_rng(0).normal(size=(60, 5)).astype("f4")
    norms = np.linalg.norm(directions, axis=1)
    cosines = directions @ directions.T / np.outer(norms, norms)
    seen, pool, want = [3, 7, 11], list(range(20, 60)), []
    for _ in range(5):
        known = [*seen, *want]
        want.append(min((i for i in pool if i not in want), key=lambda i: max(cosines[i, j] for j in known)))
    assert farthest(directions, seen, pool, 5) == want
    assert sorted(farthest(directions, seen, pool, 1000)) == pool
    assert farthest(directions, [], pool, 2)[0] == 20
    assert farthest(directions, seen, [], 3) == []


def cut(rows, indices):
    return stored(rows.states[indices], rows.scores[indices])


def test_a_few_earlier_decisions_count_as_if_they_were_on_the_same_rows():
    rows, bad = two_kinds()
    rows = stored(rows.states)  # all scores are 0, so that the scale does not depend on the earlier rows
    first, last = np.arange(150), np.arange(150, 158)
    together = rank(cut(rows, np.arange(158)), np.concatenate([first[:12], last]), bad[np.r_[:12, 150:158]])
    earlier = DecidedRows(rows=cut(rows, last), positive=bad[last])
    apart = rank(cut(rows, first), first[:12], bad[:12], earlier=earlier)
    assert_allclose(apart.scores, together.scores[:150], atol=1e-4)
    assert (apart.earlier, apart.removed + apart.kept, len(apart.directions)) == (8, 12, 150)


def test_many_earlier_decisions_count_as_ten_and_in_the_scale_of_the_ranked_rows():
    rows, bad = two_kinds(seed=3)
    other, other_bad = two_kinds(seed=4)
    few, refs = np.array([0, 1, 2]), references()
    once = DecidedRows(rows=other, positive=other_bad)
    twice = DecidedRows(rows=other.followed_by(other), positive=np.concatenate([other_bad, other_bad]))
    scores = [rank(rows, few, bad[few], refs, earlier=each).scores for each in (once, twice)]
    assert_allclose(scores[0], scores[1], atol=0.02)
    # Without a decision of their own, rows are ranked by what was learned elsewhere; the score says nothing.
    assert roc_auc_score(bad, rank(rows, *NONE, refs, earlier=once).scores) > 0.9 > roc_auc_score(bad, rows.scores)
    shifted = stored(rows.states, 100 * rows.scores + 7)
    same = rank(
        shifted, *NONE, earlier=DecidedRows(rows=stored(other.states, 100 * other.scores + 7), positive=other_bad)
    )
    plain = rank(rows, *NONE, earlier=once)
    assert_allclose(same.scores, 100 * plain.scores + 7, atol=0.05)


def test_held_out_figures_tell_whether_earlier_decisions_help():
    rows, bad = two_kinds(n=400, harmful=100, seed=5)
    other, other_bad = two_kinds(n=400, harmful=100, seed=6)
    decided = np.arange(40)
    helped = rank(rows, decided, bad[decided], earlier=DecidedRows(rows=other, positive=other_bad)).held_out
    alone = rank(rows, decided, bad[decided]).held_out
    misled = rank(rows, decided, bad[decided], earlier=DecidedRows(rows=other, positive=~other_bad)).held_out
    assert alone.own_auroc is None
    assert helped.own_auroc == pytest.approx(alone.auroc, abs=0.05)
    assert helped.auroc > helped.own_auroc > misled.auroc


def test_earlier_rows_of_another_width_are_refused():
    rows, _ = two_kinds()
    other = DecidedRows(rows=stored(np.ones((2, WIDTH + 1))), positive=np.array([True, False]))
    with pytest.raises(InputError, match="another model scored"):
        rank(rows, *NONE, earlier=other)


def test_signals_are_matched_by_name_and_missing_ones_are_unknown():
    dataset = table()
    arrow = dataset.select_columns(["larf_score", "larf_signals", "larf_state"]).with_format("arrow")[:]
    read = StoredRows.of_table(arrow, ["erosion", "knn"])
    assert_allclose(read.signals[0, 0], dataset[0]["larf_signals"]["erosion"])
    assert np.isnan(read.signals[:, 1]).all()
