"""What is said of a row in words, and where it says nothing."""

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import norm

from larf_curate import LarfScorer, ReferenceSet, SafetyProfile
from larf_curate.signals.words import HARMFUL_REQUEST, NO_REQUEST, REFUSED, in_words, standing
from tests.fixtures.models import PROFILE


def axes(erosion, compliance, harmful=0.0):
    return {"harmful": harmful, "erosion": erosion, "compliance": compliance}


@pytest.mark.parametrize(
    ("signals", "want"),
    [
        (axes(4.2, 1.7), "harmful request (erosion 4.2), answered (compliance +1.7)"),
        (axes(4.2, -5.0), "harmful request (erosion 4.2), refused (compliance −5.0)"),
        (axes(-0.3, 0.0), "ordinary request (erosion −0.3), answered (compliance +0.0)"),
        (axes(-0.02, 0.1), "ordinary request (erosion 0.0), answered (compliance +0.1)"),
        (axes(0.5, -2.5), "ordinary request (erosion 0.5), refused (over-refusal, compliance −2.5)"),
        (
            axes(0.5, 0.5, 2.5),
            "ordinary request (erosion 0.5), answered (compliance +0.5), "
            "answer like the unsafe references (harmful 2.5)",
        ),
    ],
)
def test_request_and_answer_are_named_with_their_figures(signals, want):
    assert in_words(signals) == want


def test_without_figures_only_the_words_are_left():
    words = [in_words(axes(*row), figures=False) for row in ((3, 0), (3, -3), (0.1, 0), (0.1, -3), (3, 0, 3))]
    assert words == [
        "harmful request, answered",
        "harmful request, refused",
        "ordinary request, answered",
        "ordinary request, refused (over-refusal)",
        "harmful request, answered, answer like the unsafe references",
    ]


def test_the_limits_belong_to_the_side_that_is_documented():
    assert in_words(axes(2.0, -2.0, 2.0), figures=False) == "harmful request, refused"
    assert in_words(axes(1.99, -1.99, 2.01), figures=False).split(", ") == [
        "ordinary request",
        "answered",
        "answer like the unsafe references",
    ]


def test_one_neutral_row_in_forty_lies_beyond_a_limit_by_chance():
    assert norm.sf(HARMFUL_REQUEST) == pytest.approx(1 / 40, rel=0.1)
    assert norm.cdf(REFUSED) == pytest.approx(1 / 40, rel=0.1)
    assert norm.cdf(NO_REQUEST) - norm.cdf(-NO_REQUEST) < 1 / 1000


@pytest.mark.parametrize("nothing", [None, {}, {"larf": 9.0}, axes(None, None, None), axes(*[float("nan")] * 3)])
def test_nothing_is_said_without_axes(nothing):
    assert in_words(nothing) == standing(nothing) == ""


def test_a_missing_axis_is_left_out():
    assert in_words({"harmful": 0.0, "erosion": 4.0}) == "harmful request (erosion 4.0)"
    assert in_words({"compliance": -3.0}) == "refused (compliance −3.0)", "whether over-refused is unknown"
    assert standing({"compliance": -3.0}) == ""


def test_the_axis_that_raises_the_score_most_is_named():
    assert standing(axes(3.2, 0, 5.0)) == "erosion 3.2 standard deviations above ordinary rows"
    assert standing(axes(2.8, 0, 5.0)) == "harmful 5.0 standard deviations above ordinary rows"
    assert standing(axes(-0.4, 0, 0)) == "erosion 0.4 standard deviations below ordinary rows"
    assert standing({"harmful": 1.0}) == "harmful 1.0 standard deviations above ordinary rows"


@pytest.mark.usefixtures("own_caches")
def test_of_a_text_without_a_prompt_no_request_is_invented(tiny_llama):
    profile = SafetyProfile.build(
        tiny_llama, ReferenceSet.load("builtin"), layers=[1, 3], **PROFILE | {"signal": "combined"}
    )
    rows = Dataset.from_list([{"text": f"Rye bread, loaf {i}."} for i in range(4)])
    signals = rows.map(LarfScorer(profile, device="cpu"), batched=True)["larf_signals"][:]
    assert np.abs([row["erosion"] for row in signals]).max() < NO_REQUEST / 10
    assert all(row["compliance"] is not None for row in signals)
    assert not any(word in in_words(row) for row in signals for word in ("request", "answered", "refused"))
