import json
from dataclasses import replace

import pytest
from scipy.stats import binom

from larf_curate.errors import InputError
from larf_curate.evaluation.refusal_report import plot_refusals
from larf_curate.models.generation import generate_answers
from larf_curate.training import RefusalReport, compare_refusals, evaluate_refusals
from tests.fixtures.tiny import byte_model, byte_tokenizer

TOKENIZER = byte_tokenizer()
PROMPTS = ["How?", "Write a very long story about a dragon and its hoard of gold", "Say hello", "Why is \ud800 odd"]


def report(refused, model="m", prompts=None):
    count = len(refused)
    return RefusalReport(
        model=model,
        judge="phrases",
        prompts=tuple(prompts or [f"p{i}" for i in range(count)]),
        answers=("x",) * count,
        refused=tuple(refused),
        off_topic=(False,) * count,
    )


def test_an_evaluation_counts_what_the_judge_says(tmp_path):
    model = byte_model()
    answers = generate_answers(model, TOKENIZER, PROMPTS[:3], max_new_tokens=4)
    result = evaluate_refusals(
        model, PROMPTS[:3], tokenizer=TOKENIZER, judge=lambda p, a: [x == "How?" for x in p], max_new_tokens=4
    )
    assert (result.answers, result.refused) == (tuple(answers), (True, False, False))
    assert result.rate == pytest.approx(1 / 3)
    result.save(tmp_path / "r.json")
    assert RefusalReport.load(tmp_path / "r.json") == result
    assert json.loads((tmp_path / "r.json").read_text())["refused"] == 1


def test_a_model_is_evaluated_by_its_folder(tmp_path):
    byte_model().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    result = evaluate_refusals(str(tmp_path), PROMPTS[:2], max_new_tokens=4)
    assert result.answers == tuple(generate_answers(byte_model(), TOKENIZER, PROMPTS[:2], max_new_tokens=4))
    assert result.model == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "got none"),
        ({"judge": "gpt"}, "there is no judge 'gpt'"),
        ({"tokenizer": None}, "wanted a tokenizer"),
        ({"judge": lambda p, a: [True, None, False, None], "max_new_tokens": 4}, "on 2 of 4: use it as a second judge"),
    ],
)
def test_evaluations_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        evaluate_refusals(byte_model(), **{"prompts": PROMPTS, "tokenizer": TOKENIZER, **options})


def test_two_models_are_compared_on_the_same_prompts():
    before, after = report([True] * 8 + [False] * 2), report([False] * 6 + [True] * 2 + [True, False])
    compared = compare_refusals(before, after)
    assert (compared["lost"], compared["gained"]) == (6, 1)
    assert compared["change"] == pytest.approx(-0.5)
    assert compared["p_value"] == pytest.approx(2 * binom.cdf(1, 7, 0.5))
    assert compared["interval"][0] < -0.5 < compared["interval"][1]
    with pytest.raises(InputError, match="different prompts"):
        compare_refusals(before, report([True] * 10, prompts=["q"] * 10))
    with pytest.raises(InputError, match="different judges, phrases and larf"):
        compare_refusals(before, replace(after, judge="larf"))


def test_the_plot_is_an_image(tmp_path):
    plot_refusals({"plain $x": report([True, False]), "SAP": report([True, True])}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
