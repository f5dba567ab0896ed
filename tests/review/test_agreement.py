"""Agreement per person and per label, against scikit-learn and the formulas written out naively."""

import random
from itertools import combinations

import pytest
from sklearn.metrics import cohen_kappa_score

from larf_curate.review.decisions.agreement import agreement_by_label, agreement_with_others, krippendorff_alpha

LABELS = ("keep", "remove", "edit", "unsure")


def answered(n, people, seed=0, per_row=3, noise=0.3):
    """Rows with answers of some people each, who err with a probability of their own."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        truth = rng.choices(LABELS, weights=(5, 3, 1, 1))[0]
        chosen = rng.sample(people, rng.randint(1, per_row))
        rows.append({name: rng.choice(LABELS) if rng.random() < noise else truth for name in chosen})
    return rows


def test_two_people_agree_as_scikit_learn_says():
    rows = answered(80, ["ann", "bob"], per_row=2)
    both = [row for row in rows if len(row) == 2]
    kappa = cohen_kappa_score([row["ann"] for row in both], [row["bob"] for row in both])
    share = sum(row["ann"] == row["bob"] for row in both) / len(both)
    found = agreement_with_others(rows)
    for name in ("ann", "bob"):
        assert (found[name].rows, found[name].share) == (len(both), pytest.approx(share))
        assert found[name].coefficient == pytest.approx(kappa)


def test_each_of_several_people_is_compared_with_all_others():
    people = ["ann", "bob", "cem", "dee"]
    rows = answered(120, people)
    for name, found in agreement_with_others(rows).items():
        own, others, shared = [], [], set()
        for place, row in enumerate(rows):
            for first, second in combinations(row, 2):
                if name in (first, second):
                    own.append(row[name])
                    others.append(row[second if name == first else first])
                    shared.add(place)
        assert found.rows == len(shared)
        assert found.share == pytest.approx(sum(a == b for a, b in zip(own, others, strict=True)) / len(own))
        assert found.coefficient == pytest.approx(cohen_kappa_score(own, others))


def test_who_decides_at_random_agrees_least():
    rng = random.Random(1)
    rows = [{"ann": label, "bob": label, "eve": rng.choice(LABELS)} for label in rng.choices(LABELS, k=200)]
    found = agreement_with_others(rows)
    assert abs(found["eve"].coefficient) < 0.15
    assert found["ann"].coefficient > 0.4


def test_labels_are_compared_as_the_formulas_say():
    rows = answered(120, ["ann", "bob", "cem", "dee"])
    units = [list(row.values()) for row in rows if len(row) > 1]
    found = agreement_by_label(rows)
    assert set(found) == set(LABELS)
    for label, shared in found.items():
        pairs = [(a, b) for unit in units for i, a in enumerate(unit) for j, b in enumerate(unit) if i != j]
        assert shared.rows == sum(label in unit for unit in units)
        first = [b == label for a, b in pairs if a == label]
        assert shared.share == pytest.approx(sum(first) / len(first))
        assert shared.coefficient == pytest.approx(naive_binary_alpha(units, label))


def naive_binary_alpha(units, label):
    """Krippendorff's alpha by counting pairs of values: within units, and of all values with each other."""
    binary = [[value == label for value in unit] for unit in units]
    values = [value for unit in binary for value in unit]
    n = len(values)
    observed = sum((a != b) / (len(unit) - 1) for unit in binary for i, a in enumerate(unit) for b in unit[:i]) * 2 / n
    expected = sum(a != b for i, a in enumerate(values) for b in values[:i]) * 2 / (n * (n - 1))
    return 1 - observed / expected


def test_too_few_rows_tell_no_coefficient_and_no_pairs_no_share():
    rows = [{"ann": "keep", "bob": "keep" if i else "remove"} for i in range(9)]
    found = agreement_with_others([*rows, {"dee": "keep"}])
    assert (found["ann"].rows, found["ann"].coefficient) == (9, None)
    assert found["ann"].share == pytest.approx(8 / 9)
    assert (found["dee"].rows, found["dee"].share, found["dee"].coefficient) == (0, None, None)
    assert agreement_with_others([*rows, rows[0]])["ann"].coefficient is not None
    assert agreement_by_label(rows)["remove"].coefficient is None
    alike = [{"ann": "keep", "bob": "keep"}] * 20
    assert agreement_with_others(alike)["ann"].coefficient is None  # undefined: there is nothing else
    assert agreement_by_label(alike)["keep"].coefficient is None
    assert agreement_by_label(alike)["keep"].share == 1


def test_alpha_of_the_published_example():
    # Krippendorff (2011), section C: nominal data, two observers, twelve units: alpha = 0.692.
    first = "a a b b d c c c e d d a".split()
    second = "b a b b b c c c e d d d".split()
    assert krippendorff_alpha(list(zip(first, second, strict=True))) == pytest.approx(0.692, abs=5e-4)
