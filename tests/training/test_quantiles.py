"""Quantiles of a ranking: their rows, equal rows and tokens, and what their refusals show."""

import itertools

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.stats import spearmanr

from larf_curate.cli import main
from larf_curate.errors import InputError
from larf_curate.files import read_json
from larf_curate.training.arms import Arm, choose, quantile_arms
from larf_curate.training.findings import ArmResult
from larf_curate.training.quantiles import QuantileTrend, quantile_trends
from tests.fixtures.scored_folder import write_scored
from tests.fixtures.training_rows import scored_rows

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=1000)
TOKENS = RNG.integers(20, 400, size=1000)


def chosen(name, scores=SCORES, tokens=TOKENS, count=50, seed=0):
    return choose(Arm.parse(name), scores, tokens, count=count, seed=seed)


def test_each_fifth_gives_rows_of_its_own_ranks_with_equal_tokens():
    ranks = np.argsort(np.argsort(SCORES))
    wanted = 50 * TOKENS.mean()
    for number in range(1, 6):
        rows = chosen(f"q{number}of5")
        assert len(set(rows)) == 50
        assert (ranks[rows] // 200 == number - 1).all()
        assert TOKENS[rows].sum() == pytest.approx(wanted, rel=0.03)
        assert set(rows) != set(chosen(f"q{number}of5", seed=1))


def test_matched_fifths_have_equal_lengths_even_if_the_score_is_length():
    scores = np.log(TOKENS) + 0.1 * SCORES
    plain = [TOKENS[chosen(f"q{n}of5", scores)].sum() for n in (1, 5)]
    assert plain[1] > 2 * plain[0]
    matched = [chosen(f"q{n}of5-matched", scores) for n in range(1, 6)]
    sums = [TOKENS[rows].sum() for rows in matched]
    assert max(sums) / min(sums) < 1.05
    assert not set(matched[0]) & set(matched[4])
    scores_within = [np.mean(scores[rows] - np.log(TOKENS[rows])) for rows in matched]
    assert scores_within == sorted(scores_within)


def test_too_few_rows_or_quantiles_are_refused():
    with pytest.raises(InputError, match="wanted 201 rows in each of 5 quantiles, got 1000 .* at most 200"):
        chosen("q1of5", count=201)
    with pytest.raises(InputError, match="at least 3 quantiles, got 2"):
        quantile_arms(2, ["larf_score"])
    for name in ("q0of5", "q6of5", "q1of5-other"):
        with pytest.raises(InputError, match="there is no arm"):
            Arm.parse(name)
    arms = quantile_arms(3, ["a", "b"], length_matched=True)
    assert [arm.name for arm in arms[2:4]] == ["q3of3-matched:a", "q1of3-matched:b"]
    assert [Arm.parse(arm.name) for arm in arms] == list(arms)


def trend(rates, prompts=20):
    """Three seeds by quantiles of refusal rates."""
    rates = np.asarray(rates)
    refused = [(np.arange(prompts) < np.round(rates[:, [q]] * prompts)).astype(float) for q in range(rates.shape[1])]
    results = [{"harmful": {"mean": float(values.mean())}, "tokens": 100, "rows": 10} for values in refused]
    arms = [ArmResult(name=str(q), results=(results[q],), refused=refused[q]) for q in range(rates.shape[1])]
    return QuantileTrend(signal="s", quantiles=tuple(arms))


def test_a_steady_fall_is_monotone_with_its_gap_and_rank_correlation():
    rates = [[0.9, 0.8, 0.6, 0.4, 0.1], [0.9, 0.7, 0.6, 0.3, 0.2], [1.0, 0.8, 0.5, 0.6, 0.2]]
    found = trend(rates).summary()
    assert (found["monotone"], found["monotone_seeds"], found["seeds"]) == (True, 2, 3)
    assert found["spearman"] == pytest.approx(spearmanr([0, 1, 2, 3, 4] * 3, np.ravel(rates)).statistic)
    assert found["p_value"] < 0.001
    assert found["gap"] == pytest.approx(np.mean([row[0] - row[-1] for row in rates]))
    low, high = found["gap_interval"]
    assert 0 < low < found["gap"] < high <= 1


def test_the_p_value_is_that_of_all_permutations():
    row = [0.9, 0.5, 0.6, 0.2]
    observed = spearmanr(range(4), row).statistic
    every = [spearmanr(range(4), order).statistic for order in itertools.permutations(row)]
    assert trend([row]).spearman()[1] == pytest.approx(np.mean(np.array(every) <= observed + 1e-12), abs=0.02)


def test_equal_rates_are_no_trend():
    found = trend([[0.5] * 5] * 3).summary()
    assert (found["monotone"], found["spearman"], found["p_value"], found["gap"]) == (False, None, 1.0, 0.0)
    whole = trend([[1.0, 0.5, 0.0]] * 2)
    assert whole.monotone()
    assert whole.gap()[1][0] < 1.0 <= whole.gap()[1][1]


def test_trends_are_grouped_by_signal_and_method():
    arms = (*quantile_arms(3, ["a", "b"]), Arm("random"))
    results = {f"{arm.name}+sft": trend([[0.5]]).quantiles[0] for arm in arms}
    found = quantile_trends(arms, results, ["sft"])
    assert [(each.signal, len(each.quantiles)) for each in found] == [("a+sft", 3), ("b+sft", 3)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_command_trains_on_each_quantile(start, tmp_path):
    folder = write_scored(tmp_path / "scored", scored_rows(40))
    (tmp_path / "p.jsonl").write_text('{"prompt": "Hurt him"}\n{"prompt": "Lie"}\n')
    prompts = [item for name in ("--harmful", "--safe") for item in (name, str(tmp_path / "p.jsonl"))]
    command = ["verify", str(folder), "--model", start, "-o", str(tmp_path / "runs"), "--quantiles", "3", *prompts]
    recipe = ["--seeds", "1", "--epochs", "1", "--max-length", "128", "--max-new-tokens", "4", "--batch-size", "4"]
    few = CliRunner().invoke(main, [*command, *recipe, "--rows", "20"])
    assert "wanted 20 rows in each of 3 quantiles, got 39" in few.output
    done = CliRunner().invoke(main, [*command, *recipe, "--rows", "6", "--signal", "larf_score", "--signal", "refusal"])
    assert done.exit_code == 0, done.output
    assert "Quantiles" in done.output
    saved = read_json(tmp_path / "runs" / "quantiles.json")
    assert [each["signal"] for each in saved] == ["larf_score+sft", "refusal+sft"]
    assert all(len(each["refused"]) == 3 for each in saved)
