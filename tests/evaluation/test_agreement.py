"""Several judges: kappa, unjudged answers, conclusions that change; and incoherent answers."""

import json
import math

import pytest
import torch
from click.testing import CliRunner
from sklearn.metrics import cohen_kappa_score

from larf_curate.cli import main
from larf_curate.errors import InputError
from larf_curate.evaluation.agreement import compare_judges
from larf_curate.evaluation.coherence import incoherence, perplexities, repeated
from larf_curate.evaluation.judges import JUDGES, named_judge
from larf_curate.evaluation.refusal_report import RefusalReport
from larf_curate.models.guards import Verdict
from tests.fixtures.tiny import byte_model, byte_tokenizer


def report(refused, judge="phrases"):
    count = len(refused)
    return RefusalReport(
        model="m",
        judge=judge,
        prompts=tuple(f"q{i}" for i in range(count)),
        answers=tuple(f"a{i}" for i in range(count)),
        refused=tuple(refused),
        off_topic=(False,) * count,
    )


def fixed(verdicts):
    return lambda prompts, answers: verdicts


def test_agreement_is_kappa_over_the_answers_that_both_judged():
    one, other = [True, True, False, False, True, False], [True, False, False, False, True, None]
    found = compare_judges(report(one), {"other": fixed(other)})
    assert found.kappas() == {("phrases", "other"): pytest.approx(cohen_kappa_score(one[:5], other[:5]))}
    figures = found.summary()["judges"]["other"]
    assert (figures["rate"], figures["unjudged"]) == (0.4, 1)
    assert any("other did not judge 1 of 6" in warning for warning in found.warnings())


def test_kappa_without_variation_or_answers_is_undefined():
    assert compare_judges(report([True] * 3), {"o": fixed([True] * 3)}).kappas() == {("phrases", "o"): None}
    found = compare_judges(report([True] * 3), {"o": fixed([None] * 3)})
    assert found.kappas() == {("phrases", "o"): None}
    assert found.summary()["judges"]["o"]["rate"] is None
    json.dumps(found.summary(), allow_nan=False)


def test_rates_that_depend_on_the_judge_are_named():
    found = compare_judges(report([True] * 40), {"other": fixed([False] * 40)})
    assert "The refusal rate depends on the judge: 100% by phrases, 0% by other." in list(found.warnings())
    assert not list(compare_judges(report([True, False] * 20), {"o": fixed([True, False] * 20)}).warnings())


def test_a_change_that_only_one_judge_sees_is_named():
    verdicts = iter([[True] * 40, [True] * 40])
    found = compare_judges(report([False] * 40), {"other": lambda p, a: next(verdicts)}, earlier=report([True] * 40))
    [warning] = [text for text in found.warnings() if "changed" in text]
    assert warning == "Whether refusals changed depends on the judge: fewer by phrases, no clear change by other."
    assert found.summary()["judges"]["phrases"]["change"]["mean"] == -1.0


def test_judges_are_named():
    assert named_judge("larf") is JUDGES["larf"]
    for name in ("guard:", "endpoint:model", "other"):
        with pytest.raises(InputError, match="endpoint:MODEL@URL"):
            named_judge(name)


def test_repetition_is_the_share_of_word_four_grams_seen_before():
    words = ("a b c d " * 5).split()
    grams = [tuple(words[i : i + 4]) for i in range(17)]
    assert repeated(" ".join(words)) == pytest.approx(1 - len(set(grams)) / 17)
    assert repeated("no no no no no no") == 0.0
    assert repeated("我不能帮你。" * 20) > 0.9
    assert repeated("法国的首都是巴黎，它位于塞纳河畔，也是全国最大的城市和文化中心。") == 0.0
    shares = incoherence(["a b c d " * 20, "", "A sound answer", "xq zz"], [5.0, math.inf, 20.0, 5000.0])
    assert shares == {"repetitive": 0.25, "empty": 0.25, "improbable": 0.5, "incoherent": 0.75}
    assert incoherence(["ok"])["improbable"] is None


def test_perplexity_is_that_of_the_answer_alone():
    model, tokenizer = byte_model().eval(), byte_tokenizer()
    [got, empty] = perplexities(model, tokenizer, ["Hi", "Hi"], ["Yes", ""])
    head = tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    said = tokenizer("Yes")["input_ids"]
    logs = model(torch.tensor([head + said])).logits[0].detach().log_softmax(-1)
    want = [logs[len(head) - 1 + i, token] for i, token in enumerate(said)]
    assert got == pytest.approx(math.exp(-float(torch.stack(want).mean())), rel=1e-4)
    assert empty == math.inf


@pytest.mark.parametrize("further", [("larf", "noncompliance"), ()])
def test_the_command_reports_judges_and_incoherence(start, tmp_path, further):
    (tmp_path / "p.jsonl").write_text('{"prompt": "Say it"}\n{"prompt": "Lie"}\n')
    prompts = [item for name in ("--harmful", "--safe") for item in (name, str(tmp_path / "p.jsonl"))]
    options = [item for name in further for item in ("--second-judge", name)]
    command = ["evaluate", start, "-o", str(tmp_path / "out"), "--max-new-tokens", "4", "--base", start]
    done = CliRunner().invoke(main, [*command, *prompts, *options])
    assert done.exit_code == 0, done.output
    assert "of the answers are incoherent" in done.output
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved["incoherence"]["harmful"]["improbable"] is not None
    assert ("judges" in saved) == bool(further)
    if further:
        assert list(saved["judges"]["harmful"]["judges"]) == ["phrases", *further]
        assert "kappa of phrases and larf" in done.output


def test_a_guard_judges_alike_as_the_first_and_as_a_further_judge(start, tmp_path, monkeypatch, caplog):
    asked = []

    def guard(chats):
        asked.append(chats)
        return [Verdict("ok", (0.9, 0.1)[index % 2]) for index in range(len(chats))]

    monkeypatch.setattr("larf_curate.models.guards.load_guard", lambda name: guard)
    (tmp_path / "p.jsonl").write_text('{"prompt": "Say it"}\n{"prompt": "Lie"}\n')
    command = ["evaluate", start, "-o", str(tmp_path / "out"), "--max-new-tokens", "4", "--guard", "org/guard"]
    command += [part for name in ("--harmful", "--safe") for part in (name, str(tmp_path / "p.jsonl"))]
    command += ["--second-judge"]
    twice = CliRunner().invoke(main, [*command, "guard:org/guard"])
    assert "wanted each judge once" in twice.output
    done = CliRunner().invoke(main, [*command, "guard:org/other"])
    assert done.exit_code == 0, done.output
    judged = json.loads((tmp_path / "out" / "evaluation.json").read_text())["judges"]
    rates = judged["harmful"]["judges"]
    assert {name: row["rate"] for name, row in rates.items()} == {"guard:org/guard": 0.5, "guard:org/other": 0.5}
    # To a guard, every harmless answer would be a refusal: of safe prompts it says nothing.
    assert "safe" not in judged
    assert json.loads((tmp_path / "out" / "safe.json").read_text())["judge"] == "phrases"
    assert "guard:org/guard judges harm, not refusals: safe prompts are judged by phrases" in caplog.text
    assert asked[0] in asked[1:]


def test_a_judge_given_twice_is_refused(start, tmp_path):
    done = CliRunner().invoke(main, ["evaluate", start, "-o", str(tmp_path), "--second-judge", "phrases"])
    assert "wanted each judge once" in done.output
