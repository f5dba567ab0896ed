"""The sample of a push under a budget, and the estimate of what is left, on simulated reviews with known truth."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import betabinom

from larf_curate.errors import InputError
from larf_curate.review.sampling.choice import Population, plan
from larf_curate.review.sampling.interval import PRIOR, Sample, left_range, most_likely
from larf_curate.review.sampling.left import left_harmful
from larf_curate.review.sampling.stage import EMPTY, Sampled, Stage, random_order, read_sampling
from tests.fixtures.long import at_length


def population(chances, **given):
    ids = [f"row-{index}" for index in range(len(chances))]
    return Population(name="flagged", ids=ids, chances=np.asarray(chances, float), **given)


def planned(rows, budget, *, sampled=EMPTY, labels=None, seed=0, shared=()):
    queued = set(sampled.rows) - set(shared)
    return plan(rows, sampled=sampled, queued=queued, shared=shared, labels=labels or {}, budget=budget, seed=seed)


def simulated(rng, count=300, harmful=30, auroc_shift=1.0):
    """Rows whose chances tell harmful ones somewhat, and the truth by row id."""
    bad = rng.permutation(count) < harmful
    rows = population(rng.normal(size=count) + auroc_shift * bad)
    return rows, dict(zip(rows.ids, bad.tolist(), strict=True))


READING_ORDERS = {
    "worst first": lambda pushed, chance, truth, rng: sorted(pushed, key=lambda row: -chance[row]),
    "harmless first": lambda pushed, chance, truth, rng: sorted(pushed, key=lambda row: truth[row]),
    "harmful first": lambda pushed, chance, truth, rng: sorted(pushed, key=lambda row: not truth[row]),
    "any": lambda pushed, chance, truth, rng: list(rng.permutation(pushed)),
}


def reviewed(rng, order, *, pushes=(60, 120, 180), every=6, wrong=0.0):
    """Estimates and truths at all looks of a review that reads every push to its end."""
    rows, truth = simulated(rng)
    chance = dict(zip(rows.ids, rows.chances, strict=True))
    sampled, labels, looks = EMPTY, {}, []
    for budget in pushes:
        new = planned(rows, budget, sampled=sampled, labels=labels, seed=int(rng.integers(1 << 31)))
        sampled = new.sampled
        for row in READING_ORDERS[order]([*new.chosen, *new.random], chance, truth, rng):
            labels[row] = bool(truth[row] ^ (rng.random() < wrong))
            if len(labels) % every == 0:
                left = left_harmful(sampled, labels)
                looks.append((left, sum(truth.values()) - sum(truth[row] for row in labels)))
    return [(left, unread) for left, unread in looks if left.estimate is not None]


def check_coverage(order, *, reviews, wrong=0.0, **given):
    looks = [reviewed(np.random.default_rng(seed), order, wrong=wrong, **given) for seed in range(reviews)]
    assert all(looks)
    covered = [all(left.low <= truth <= left.high for left, truth in each) for each in looks]
    assert np.mean(covered) >= 0.9
    assert np.mean([each[-1][0].high / each[-1][0].unread for each in looks]) < 0.5  # not by saying that all may be


@pytest.mark.parametrize("order", ["worst first", "harmless first"])
def test_the_truth_is_in_the_interval_at_every_look_of_nine_reviews_in_ten(order):
    check_coverage(order, reviews=25, pushes=(60, 120), every=12)


@at_length
@pytest.mark.parametrize("order", READING_ORDERS)
@pytest.mark.parametrize("wrong", [0.0, 0.05])
def test_the_truth_is_in_the_interval_also_with_wrong_decisions(order, wrong):
    check_coverage(order, reviews=60, wrong=wrong)


def one_sample(rng, others=400, random=200, harmful=60):
    """A stage without chosen rows: the sample, the truth by row id, and the random rows in their order."""
    rows = population(np.zeros(others))
    truth = dict(zip(rows.ids, (rng.permutation(others) < harmful).tolist(), strict=True))
    drawn = random_order(rows.ids, int(rng.integers(1 << 31)))[:random]
    given = {"number": 1, "population": "flagged", "digest": "", "seed": 0, "chosen": 0}
    stage = Stage(**given, rows=others, others=others, random=random)
    places = {row: {"1": place} for place, row in enumerate(drawn, 1)}
    return Sampled(stages={"1": stage}, rows=places), truth, drawn


@pytest.mark.parametrize("order", READING_ORDERS)
def test_whatever_random_rows_people_read_first_the_truth_stays_in_the_interval(order):
    covered, highs = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        sampled, truth, drawn = one_sample(rng)
        read = READING_ORDERS[order](drawn, dict.fromkeys(drawn, 0.0), truth, rng)
        looks = [left_harmful(sampled, {row: truth[row] for row in read[:count]}) for count in range(20, 201, 20)]
        left = [sum(truth.values()) - sum(truth[row] for row in read[:count]) for count in range(20, 201, 20)]
        told = [(look, number) for look, number in zip(looks, left, strict=True) if look.estimate is not None]
        covered.append(all(look.low <= number <= look.high for look, number in told))
        highs.append(looks[-1].high)
    assert np.mean(covered) >= 0.9
    assert np.mean(highs) < 75  # 30 are left on average


def test_harmful_rows_found_after_a_gap_are_known_though_they_are_no_sample():
    sampled, truth, drawn = one_sample(np.random.default_rng(0))
    labels = {row: truth[row] for row in drawn[:60]}
    before = left_harmful(sampled, labels)
    after = left_harmful(sampled, labels | {row: True for row in drawn[61:81]})
    assert before.random_read == after.random_read == 60
    assert before.high - after.high == pytest.approx(20 / 0.95, abs=1)


def test_the_estimate_after_a_push_was_read_is_right_on_average():
    ends = [reviewed(np.random.default_rng(seed), "any", pushes=(100, 150), every=150)[-1] for seed in range(150)]
    errors = [left.estimate - truth for left, truth in ends]
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(len(errors)) + 0.5
    assert np.mean([truth for _, truth in ends]) > 5


@pytest.mark.parametrize(
    ("rows", "read", "harmful"), [(50, 20, 0), (50, 20, 3), (200, 100, 60), (30, 30, 4), (9, 0, 0)]
)
def test_the_interval_of_one_sample_is_that_of_prior_over_posterior(rows, read, harmful):
    a, b = PRIOR
    left = np.arange(rows - read + 1)
    prior = betabinom.pmf(left + harmful, rows, a, b)
    posterior = betabinom.pmf(left, rows - read, a + harmful, b + read - harmful)
    expected = left[prior / posterior < 1 / 0.05]
    sample = Sample(rows=rows, read=read, harmful=harmful, found=harmful, outside=0)
    assert left_range([sample], rows - read, alpha=0.05) == (expected[0], expected[-1])


def test_unread_rows_outside_the_sample_may_all_be_harmful_or_none():
    sample = Sample(rows=100, read=50, harmful=5, found=5, outside=0)
    low, high = left_range([sample], 50, alpha=0.05)
    assert left_range([replace(sample, outside=30)], 80, alpha=0.05) == (low, high + 30)
    assert most_likely([sample], 50, share_outside=0.0) == 5


def test_harmful_rows_found_since_are_subtracted():
    sample = Sample(rows=100, read=40, harmful=20, found=20, outside=0)
    low, high = left_range([sample], 60, alpha=0.05)
    later = left_range([replace(sample, found=23)], 55, alpha=0.05)
    assert later == (low - 3, high - 3)


def test_chosen_rows_are_those_with_the_highest_expected_harm_and_copies_go_once():
    rows = population([0.9, 0.3, 0.3, 0.3, 0.3, 0.8, 0.1, 0.1, 0.1, 0.1], groups={"row-1": ["row-2", "row-3", "row-4"]})
    new = planned(rows, 4)
    assert new.chosen == ("row-1", "row-0", "row-5")  # 4 copies of 0.3 are 1.2 harmful rows
    assert len(new.random) == 1
    assert set(new.random) <= {f"row-{index}" for index in range(6, 10)}
    assert new.sampled.stages["1"].chosen == 6  # the copies are decided too
    assert new.sampled.rows["row-3"] == {"1": 0}


def test_each_row_that_was_not_chosen_is_sent_with_the_stated_probability():
    rows = population(np.linspace(1, 0, 40))
    counts = Counter(row for seed in range(2000) for row in planned(rows, 20, seed=seed).random)
    stage = planned(rows, 20).sampled.stages["1"]
    assert (stage.random, stage.others) == (4, 24)
    assert len(counts) == 24
    shares = np.array(list(counts.values())) / 2000
    assert abs(shares - 4 / 24).max() < 4.5 * np.sqrt(4 / 24 * 20 / 24 / 2000)


def test_a_repeated_push_adds_nothing_and_a_higher_budget_goes_on_from_what_is_unread():
    rows = population(np.linspace(1, 0, 60))
    first = planned(rows, 20)
    again = planned(rows, 20, sampled=first.sampled)
    assert (again.chosen, again.random, again.sampled) == ((), (), first.sampled)
    labels = dict.fromkeys(first.chosen, True)
    more = planned(rows, 30, sampled=first.sampled, labels=labels)
    assert len(more.chosen) + len(more.random) == 10
    assert not {*more.chosen, *more.random} & set(first.sampled.rows)
    stage = more.sampled.stages["2"]
    assert stage.chosen == len(more.chosen) + len(first.random)  # unread rows of the queue are to be read
    assert stage.chosen + stage.others == 60 - len(labels)
    assert all("2" not in more.sampled.rows[row] for row in labels)


def test_random_rows_become_most_of_a_push_when_chosen_ones_are_harmless():
    rows = population(np.linspace(1, 0, 200))
    first = planned(rows, 40)
    fruitless = planned(rows, 80, sampled=first.sampled, labels=dict.fromkeys(first.sampled.rows, False))
    fruitful = planned(rows, 80, sampled=first.sampled, labels=dict.fromkeys(first.sampled.rows, True))
    assert (len(fruitless.random), len(fruitful.random)) == (32, 8)


def test_before_enough_random_rows_are_read_nothing_is_estimated():
    rows = population(np.linspace(1, 0, 200))
    new = planned(rows, 100)
    left = left_harmful(new.sampled, dict.fromkeys(new.chosen, True))
    assert (left.estimate, left.low, left.high, left.found_share) == (None,) * 4
    assert left.reason == "cannot say yet: 0 of 20 random rows are read without a gap; read 10 more"
    # The first random row is unread: the others after it might be the easy ones.
    gap = left_harmful(new.sampled, dict.fromkeys(new.random[1:], False))
    assert gap.random_read == 0
    assert left_harmful(new.sampled, dict.fromkeys(new.random[:10], False)).estimate is not None


def test_a_budget_with_too_few_random_rows_is_said_to_need_a_higher_one():
    rows = population(np.linspace(1, 0, 200))
    first = planned(rows, 40)
    assert len(first.random) == 8
    for read in (0, 8):  # nobody can read 10 of 8 rows
        reason = left_harmful(first.sampled, dict.fromkeys(first.random[:read], False)).reason
        assert reason.startswith(f"cannot say yet: {read} of 8 random rows are read without a gap; 10 are needed")
        assert "higher budget" in reason
    labels = dict.fromkeys(first.sampled.rows, True)
    more = planned(rows, 50, sampled=first.sampled, labels=labels)
    assert len(more.random) == 2
    left = left_harmful(more.sampled, labels)
    assert left.reason == "cannot say yet: 8 of 10 random rows are read without a gap; read 2 more"
    labels |= dict.fromkeys(more.random, False)
    assert left_harmful(more.sampled, labels).estimate is not None


def test_when_all_rows_were_sent_and_none_is_read_nothing_is_estimated():
    rows = population(np.linspace(0, 1, 30))
    sampled = planned(rows, 60).sampled
    left = left_harmful(sampled, {})
    assert (left.estimate, left.reason) == (None, "cannot say yet: no row is decided")
    assert left_harmful(sampled, {rows.ids[0]: True}).estimate is not None


def test_when_all_rows_are_read_none_is_left():
    rows = population(np.linspace(1, 0, 30))
    labels = {row: index < 5 for index, row in enumerate(rows.ids)}
    new = planned(rows, 30)
    left = left_harmful(new.sampled, labels)
    assert (left.unread, left.found, left.estimate, left.low, left.high, left.found_share) == (0, 5, 0, 0, 0, 1.0)


def without_rows(sampled, lost):
    """The sample when records of these rows are not in the queue."""
    return replace(sampled, rows={row: places for row, places in sampled.rows.items() if row not in lost})


def test_a_random_row_that_is_missing_does_not_end_the_sample():
    rows = population(np.linspace(1, 0, 400))
    new = planned(rows, 300)
    labels = {row: index % 4 == 0 for index, row in enumerate([*new.chosen, *new.random])}
    whole, lost = left_harmful(new.sampled, labels), new.random[3]
    gap = left_harmful(without_rows(new.sampled, {lost}), {row: labels[row] for row in labels if row != lost})
    assert (gap.random_read, gap.random_missing, gap.unread) == (59, 1, whole.unread + 1)
    assert gap.low <= whole.low < whole.high < gap.high <= whole.high + 6
    labels = dict.fromkeys(rows.ids, False)
    again = planned(rows, 400, sampled=without_rows(new.sampled, {lost}), labels=labels)
    assert lost in (*again.chosen, *again.random)
    all_read = left_harmful(again.sampled, labels)
    assert (all_read.unread, all_read.estimate, all_read.high) == (0, 0, 0)


@pytest.mark.parametrize("which", ["harmful", "any"])
def test_missing_random_rows_leave_the_truth_in_the_interval(which):
    covered = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        sampled, truth, drawn = one_sample(rng)
        lost = {row for row in drawn[:-1] if rng.random() < 0.1 and (which == "any" or truth[row])}
        read = [row for row in drawn if row not in lost]
        looks = [
            left_harmful(without_rows(sampled, lost), {row: truth[row] for row in read[:n]}) for n in (20, 60, 150)
        ]
        left = [sum(truth.values()) - sum(truth[row] for row in read[:n]) for n in (20, 60, 150)]
        covered.append(all(look.low <= number <= look.high for look, number in zip(looks, left, strict=True)))
    assert np.mean(covered) >= 0.9


def test_a_push_that_ended_early_is_a_smaller_sample_and_the_next_goes_on():
    rows, truth = simulated(np.random.default_rng(3))
    first = planned(rows, 100)
    sent = without_rows(first.sampled, {*first.random[12:], *first.chosen})
    labels = {row: bool(truth[row]) for row in first.random[:12]}
    early = left_harmful(sent, labels)
    assert (early.random_read, early.random_missing) == (12, 0)
    assert early.estimate is not None
    second = planned(rows, 100, sampled=sent, labels=labels)
    assert len(second.chosen) + len(second.random) == 88
    labels |= {row: bool(truth[row]) for row in (*second.chosen, *second.random)}
    after = left_harmful(second.sampled, labels)
    assert after.random_read == 12 + len(second.random)
    assert after.low <= sum(truth.values()) - after.found <= after.high


def test_without_harmful_rows_the_bound_falls_as_random_rows_are_read():
    rows = population(np.linspace(1, 0, 500))
    new = planned(rows, 400)
    labels = dict.fromkeys(new.chosen, False)
    highs = []
    for count in (10, 40, 80):
        left = left_harmful(new.sampled, labels | dict.fromkeys(new.random[:count], False))
        assert (left.estimate, left.low) == (0, 0)
        highs.append(left.high)
    assert highs == sorted(highs, reverse=True)
    assert 0 < highs[-1] < highs[0] < left.unread


def test_rows_that_people_cannot_tell_widen_the_interval_on_both_sides():
    rows = population(np.linspace(1, 0, 400))
    new = planned(rows, 300)
    harmful = {row: index % 2 == 0 for index, row in enumerate(new.random)}
    labels = dict.fromkeys(new.chosen, True) | harmful
    unsure = labels | {row: None for index, row in enumerate(new.random) if index % 5 == 0}
    sure, doubtful = left_harmful(new.sampled, labels), left_harmful(new.sampled, unsure)
    assert doubtful.low < sure.low < sure.high < doubtful.high
    assert doubtful.random_read == sure.random_read == 60


def test_a_row_that_changed_since_is_unread_again_and_may_be_harmful():
    rows = population(np.linspace(1, 0, 200))
    first = planned(rows, 100)
    labels = dict.fromkeys(first.sampled.rows, False)
    second = planned(rows, 150, sampled=first.sampled, labels=labels)
    labels |= dict.fromkeys(second.sampled.rows, False)
    whole = left_harmful(second.sampled, labels)
    changed = dict(list(labels.items())[1:])
    assert left_harmful(second.sampled, changed).chosen_unread == whole.chosen_unread + 1
    assert left_harmful(second.sampled, changed).high >= whole.high + 1


def test_a_row_that_was_sent_otherwise_counts_after_the_push_is_repeated():
    rows = population(np.linspace(1, 0, 100))
    first = planned(rows, 60)
    other = next(row for row in rows.ids if row not in first.sampled.rows)
    labels = dict.fromkeys(first.sampled.rows, False) | {other: True}
    before = left_harmful(first.sampled, labels)
    queued = {*first.sampled.rows, other}
    repeated = plan(rows, sampled=first.sampled, queued=queued, shared=(), labels=labels, budget=60)
    after = left_harmful(repeated.sampled, labels)
    assert (before.unread, before.found) == (40, 0)
    assert (after.unread, after.found) == (39, 1)


def test_a_sample_of_other_rows_or_of_another_population_is_refused():
    first = planned(population(np.linspace(1, 0, 50)), 10)
    with pytest.raises(InputError, match="50 rows of the earlier push, got 51 others"):
        planned(population(np.linspace(1, 0, 51)), 20, sampled=first.sampled)
    with pytest.raises(InputError, match=r"flagged rows only, got flagged and unflagged rows"):
        planned(replace(population(np.linspace(1, 0, 50)), name="all"), 20, sampled=first.sampled)


def test_what_records_carry_comes_back_and_anything_else_is_refused():
    sampled = planned(population(np.linspace(1, 0, 50)), 20).sampled
    carried = [sampled.of_rows([row]).to_metadata() for row in sampled.rows]
    assert read_sampling(carried) == sampled
    with pytest.raises(InputError, match="a record of the queue"):
        read_sampling([*carried[1:], carried[0] | {"stages": {"1": {}}}])
    other = planned(population(np.linspace(1, 0, 50)), 20, seed=1).sampled
    with pytest.raises(InputError, match="different samples"):
        read_sampling([carried[0], other.to_metadata()])
