"""The sentence that says why a row is shown is true of every signal, rank and status."""

import numpy as np
import pytest

from larf_curate.review.records.reason import Rank, ranks, reason
from larf_curate.signals import SIGNALS


def axes(erosion, compliance, harmful=0.0):
    return {"harmful": harmful, "erosion": erosion, "compliance": compliance}


@pytest.mark.parametrize(
    ("row", "want"),
    [
        (
            {"larf_score": 3.2, "larf_signals": axes(3.2, 0.5), "larf_percentile": 100.0},
            "Harmful request, answered: request 3.2 standard deviations above ordinary rows; rank 1 of 33.",
        ),
        (
            {"larf_score": 3.0, "larf_signals": axes(0.5, 0.5, 5.0), "larf_percentile": 99.0},
            "Ordinary request, answered, answer like the unsafe references: answer 5.0 standard deviations above "
            "ordinary rows; rank 1 of 33.",
        ),
        (
            {"larf_score": 3.0, "larf_percentile": 97.39},
            "A score no lower than that of 97.3 % of its dataset; rank 1 of 33.",
        ),
        ({"larf_score": 3.0, "larf_percentile": 100.0}, "The highest score of its dataset; rank 1 of 33."),
        ({"larf_score": 3.0, "larf_percentile": None}, "Score 3.000; rank 1 of 33."),
        (
            {"larf_score": 0.2, "larf_signals": axes(0.1, 0.5), "larf_reason": "learned score 1.2 after 40 decisions"},
            "Ordinary request, answered: added for what people decided on similar rows; rank 1 of 33 by the machine's "
            "score.",
        ),
    ],
)
def test_a_row_is_explained(row, want):
    assert reason(row, rank=Rank(1, 33)) == want


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_a_row_without_score_has_no_rank_nor_figure(score):
    row = {"larf_score": score, "larf_status": "malformed", "larf_signals": axes(None, None, None)}
    assert reason(row) == "Not scored (malformed): look at the row itself."


@pytest.mark.parametrize("signal", SIGNALS)
def test_standard_deviations_are_named_only_where_the_score_is_made_of_them(signal):
    row = {"larf_score": 1.0, "larf_signals": axes(4.0, 0.0), "larf_percentile": 50.0}
    said = reason(row, signal=signal, rank=Rank(2, 9))
    assert said.startswith("Harmful request, answered: ")
    assert ("standard deviations" in said) == (signal in ("combined", "erosion", "harmful"))
    assert said.endswith("; rank 2 of 9.")


def test_ranks_are_those_of_a_plain_sort():
    scores = np.array([0.5, np.nan, 2.0, 0.5, -1.0, np.inf])
    found = ranks(list("abcdef"), scores)
    assert {row: rank.place for row, rank in found.items()} == {"c": 1, "a": 2, "d": 3, "e": 4}
    assert {rank.of for rank in found.values()} == {4}
