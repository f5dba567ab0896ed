import numpy as np
import pytest

from larf_curate.errors import InputError
from larf_curate.training.arms import Arm, choose, signal_values
from tests.fixtures.training_rows import scored_rows

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(10, 200, size=400)
SCORES = RNG.normal(size=400) + TOKENS / 50  # long rows score higher


@pytest.mark.parametrize("count", [20, 60, 150])
def test_arms_have_equal_rows_and_equal_tokens_though_the_score_follows_length(count):
    chosen = {kind: choose(Arm(kind), SCORES, TOKENS, count=count) for kind in ("top", "bottom", "random")}
    totals = {kind: TOKENS[rows].sum() for kind, rows in chosen.items()}
    assert {len(set(rows)) for rows in chosen.values()} == {count}
    assert max(totals.values()) / min(totals.values()) < 1.05
    assert SCORES[chosen["top"]].mean() > SCORES[chosen["random"]].mean() + 0.5
    assert SCORES[chosen["bottom"]].mean() < SCORES[chosen["random"]].mean() - 0.5


@pytest.mark.parametrize("count", [50, 90, 150])
def test_tokens_are_equal_too_where_few_rows_are_very_long_and_score_highest(count):
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(4, 1, 2000).astype(int) + 1
    scores = lengths / lengths.std() + rng.normal(size=2000)
    chosen = {kind: choose(Arm(kind), scores, lengths, count=count) for kind in ("top", "bottom", "random")}
    totals = {kind: lengths[rows].sum() for kind, rows in chosen.items()}
    assert {len(set(rows)) for rows in chosen.values()} == {count}
    assert max(totals.values()) / min(totals.values()) < 1.1
    assert scores[chosen["top"]].mean() > scores[chosen["random"]].mean() + 1
    assert scores[chosen["bottom"]].mean() < scores[chosen["random"]].mean() - 1


def test_the_top_of_rows_of_one_length_is_the_plain_top():
    scores = RNG.normal(size=50)
    rows = choose(Arm("top"), scores, [10] * 50, count=3)
    assert rows.tolist() == sorted(np.argsort(-scores)[:3])


def test_the_longest_rows_are_the_baseline():
    rows = choose(Arm("longest"), SCORES, TOKENS, count=10)
    assert TOKENS[rows].min() >= np.sort(TOKENS)[-10]


def test_kept_leaves_out_the_top_share_and_rows_without_score_first():
    scores = np.array([0.1, np.nan, 0.9, 0.5, 0.7, 0.2, 0.3, 0.4, 0.6, 0.8])
    tokens = [5] * 10
    assert choose(Arm("kept"), scores, tokens, count=0, removed=0.3).tolist() == [0, 3, 4, 5, 6, 7, 8]
    assert choose(Arm("all"), scores, tokens, count=0).tolist() == list(range(10))
    thinned = [choose(Arm("thinned"), scores, tokens, count=0, removed=0.3, seed=s).tolist() for s in (0, 0, 1)]
    assert thinned[0] == thinned[1] != thinned[2]
    assert len(thinned[0]) == 7


def test_rows_without_answer_or_score_are_not_picked():
    scores = np.array([9.0, np.nan, 1.0, 2.0])
    assert choose(Arm("top"), scores, [0, 5, 5, 5], count=2).tolist() == [2, 3]
    with pytest.raises(InputError, match="wanted 3 rows, got 2"):
        choose(Arm("top"), scores, [0, 5, 5, 5], count=3)


def test_random_rows_differ_by_seed_and_repeat_with_it():
    draws = [choose(Arm("random"), SCORES, TOKENS, count=40, seed=s).tolist() for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_signals_are_read_from_their_column_or_the_struct():
    rows = scored_rows()
    assert np.isnan(signal_values(rows, "larf_score")[0])
    assert signal_values(rows, "refusal").tolist() == [row["refusal"] for row in rows["larf_signals"]]
    with pytest.raises(InputError, match="no signal 'knn': wanted one of larf_score, refusal"):
        signal_values(rows, "knn")
    with pytest.raises(InputError, match="there is no arm 'best'"):
        Arm.parse("best")
    assert [Arm.parse(text).name for text in ("top", "bottom:refusal", "random")] == [
        "top:larf_score",
        "bottom:refusal",
        "random",
    ]
