import math

import numpy as np
import pytest
import torch

from larf_curate.data import load_rows
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError, ModelError
from larf_curate.layers import find_safety_layers
from larf_curate.layers.find import _subsample
from larf_curate.layers.methods import decision_threshold
from larf_curate.layers.soundness import SKIPPED_TOKENS, NeutralLoss
from larf_curate.models.blocks import scaled
from tests.fixtures.tiny import PROMPTS, tiny_model, tiny_subject, word_tokenizer

REFERENCES = ReferenceSet(
    unsafe=tuple({"prompt": text, "response": "sure , here is the first step"} for text in PROMPTS),
    safe=tuple({"prompt": text, "response": "sorry , no"} for text in PROMPTS),
    labels=("unsafe",) * len(PROMPTS),
    source="test",
)
OPTIONS = {"prompts": PROMPTS, "references": REFERENCES, "alphas": (0.4, 2.0), "keywords": "larf"}


def planted(block=1, *, layers=4):
    """A model in which only one block does anything: it turns the stream from helping to refusing."""
    model, tokenizer = tiny_model(layers=layers), word_tokenizer()
    sorry, sure, marker = (tokenizer.convert_tokens_to_ids(word) for word in ("sorry", "sure", "assistant"))
    with torch.no_grad():
        for module in model.model.layers:
            module.self_attn.o_proj.weight.zero_()
            module.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.mul_(0.5)
        model.lm_head.weight.mul_(0.05)
        embedding = model.model.embed_tokens.weight
        embedding[marker].zero_()
        embedding[marker, 0] = 1.0  # what answers start from: the direction of helping
        model.lm_head.weight[sure] = 0
        model.lm_head.weight[sure, 0] = 1.0
        model.lm_head.weight[sorry] = 0
        model.lm_head.weight[sorry, 1] = 1.0
        attention = model.model.layers[block].self_attn  # carries the prompt's words into the direction of refusing
        attention.q_proj.weight.zero_()
        attention.v_proj.weight.abs_()
        attention.o_proj.weight[1] = 1.0 * torch.arange(1, 33) / 32
        model.generation_config.eos_token_id = [sure, sorry]
    return model, tokenizer


def find(method, **options):
    model, tokenizer = planted()
    return find_safety_layers(model, tokenizer=tokenizer, method=method, **{**OPTIONS, **options})


@pytest.mark.parametrize("method", ["sweep", "forward", "gradient"])
def test_the_one_block_that_makes_refusals_is_found_and_the_others_are_not(method):
    report = find(method)
    assert report.layers == (1,)
    assert report.advice == ""
    assert report.ranking[0] == 1
    assert report.scores[1] > 0
    np.testing.assert_allclose([report.scores[block] for block in (0, 2, 3)], 0, atol=1e-5)
    assert 0 < report.refused < len(PROMPTS)
    assert report.prompts == len(PROMPTS)
    assert set(report.scaled) >= {"self_attn.q_proj.weight", "mlp.down_proj.weight"}


def test_curves_and_the_baseline_are_refused_shares():
    report = find("sweep")
    assert report.baseline == report.refused / len(PROMPTS)
    assert report.curves[0] == (report.baseline, report.baseline)
    assert report.scores[1] == pytest.approx(report.curves[1][1] - report.curves[1][0])


def test_scales_are_those_of_the_paper_for_a_sweep_and_its_outermost_for_what_needs_no_more():
    assert find("sweep", alphas=None).alphas == (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
    assert find("forward", alphas=None).alphas == (0.7, 1.3)


def test_the_border_has_as_many_log_odds_above_it_as_prompts_are_refused():
    odds = [3.0, -1.0, 0.5, 2.0]
    assert decision_threshold(odds, 3) == 0
    for refused in (1, 2, 3):
        assert sum(value > decision_threshold(odds, refused) for value in odds) == refused


def test_forward_starts_from_the_share_that_the_model_refuses_and_keeps_the_log_odds():
    report = find("forward")
    assert report.curves[0] == (report.baseline, report.baseline)
    assert report.scores[1] == pytest.approx(report.curves[1][1] - report.curves[1][0])
    assert report.measures["log_odds"][1] > 0.5


def test_fewer_prompts_are_taken_from_everywhere_in_the_list():
    assert find("sweep", max_prompts=7).prompts == 7
    assert _subsample(list("abcdefghij"), 48, None) == list("abcdefghij")
    assert _subsample(list("abcdefghij"), 5, None) == list("acegi")
    assert _subsample(list("abcdefghij"), 5, 2) == list("af")


def test_separation_needs_no_refusals():
    model = tiny_model()
    report = find_safety_layers(model, tokenizer=word_tokenizer(), method="separation", **OPTIONS)
    assert report.refused is None
    assert len(report.measures["auroc"]) == 3
    assert report.prompts == len(REFERENCES)


@pytest.mark.parametrize("method", ["sweep", "forward", "gradient"])
@pytest.mark.parametrize(("keywords", "said"), [(["zebra"], "none"), ([" "], "all")])
def test_a_model_that_never_or_always_refuses_is_an_error_and_not_an_arbitrary_layer(method, keywords, said):
    with pytest.raises(ModelError, match=f"refuses {said} of 7.*separation"):
        find_safety_layers(
            tiny_model(seed=3), tokenizer=word_tokenizer(), method=method, **{**OPTIONS, "keywords": keywords}
        )


@pytest.mark.parametrize("method", ["sweep", "forward", "gradient"])
def test_a_block_that_destroys_harmless_answers_is_broken_and_not_recommended(method, monkeypatch):
    growth = {0: 0.2, 1: 5.0, 2: 0.1, 3: 0.0}
    monkeypatch.setattr(NeutralLoss, "growth", lambda self, block, alphas: growth[block])
    report = find(method)
    assert report.broken == (1,)
    assert 1 not in report.ranking
    assert report.layers == ()
    assert "none is recommended" in report.advice
    assert report.neutral_loss[1] == 5.0


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "best"}, InputError, "method"),
        ({"top": 0}, InputError, "top"),
        ({"alphas": [0.5]}, InputError, "scales"),
        ({"prompts": []}, InputError, "prompts"),
        ({"max_prompts": 0}, InputError, "max_prompts"),
        ({"prompts": ["garlic " * 300]}, InputError, "shorten"),
        ({"keywords": "best"}, InputError, "keywords"),
        ({"alphas": [0.5, math.inf]}, InputError, "finite"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(options, error, said):
    with pytest.raises(error, match=said):
        find_safety_layers(tiny_model(), tokenizer=word_tokenizer(), **{**OPTIONS, **options})


def test_a_model_with_recurrent_blocks_is_refused():
    with pytest.raises(ModelError, match="recurrent"):
        find_safety_layers(tiny_model("Lfm2"), tokenizer=word_tokenizer(), **OPTIONS)


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelError, match="device"):
        find_safety_layers(tmp_path, **{**OPTIONS, "device": "nonsense"})


def test_broken_blocks_that_stand_out_are_named_in_the_advice(monkeypatch):
    monkeypatch.setattr(NeutralLoss, "growth", lambda self, block, alphas: 5.0)
    assert "(1) break it when scaled" in find("forward").advice


def test_a_model_that_is_not_there_and_one_without_blocks_or_template_are_errors(tmp_path):
    with pytest.raises(ModelError, match="cannot load .* from the Hub id|the Hub cannot be reached"):
        find_safety_layers(tmp_path / "none", **OPTIONS)
    plain = word_tokenizer()
    plain.chat_template = None
    with pytest.raises(ModelError, match="chat template"):
        find_safety_layers(tiny_model(), tokenizer=plain, **OPTIONS)
    model = tiny_model()
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="decoder blocks"):
        find_safety_layers(model, tokenizer=word_tokenizer(), **OPTIONS)
    with pytest.raises(InputError, match="tokenizer"):
        find_safety_layers(tiny_model(), **OPTIONS)


def test_a_model_saved_without_its_head_is_refused_instead_of_given_a_random_one(tmp_path):
    model, tokenizer = planted()
    model.model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 weights of LlamaForCausalLM.*: lm_head.weight"):
        find_safety_layers(str(tmp_path), **OPTIONS)


def test_the_growth_of_the_loss_on_harmless_answers_equals_the_naive_computation():
    subject = tiny_subject()
    loss = NeutralLoss(subject)
    texts = subject.encode_answers(load_rows("neutral"))
    chosen = sorted((t for t in texts if 8 <= len(t[0]) - t[1] - SKIPPED_TOKENS <= 32), key=lambda t: len(t[0]))[:6]

    def naive():
        means = []
        for ids, start in chosen:
            with torch.no_grad():
                logs = torch.log_softmax(subject.model(torch.tensor([ids])).logits[0], -1)
            means.append(-np.mean([float(logs[i - 1, ids[i]]) for i in range(start + SKIPPED_TOKENS, len(ids))]))
        return np.mean(means)

    plain = naive()
    for block in range(3):
        worst = []
        for alpha in (0.5, 2.0):
            with scaled(subject.blocks[block], alpha):
                worst.append(naive() - plain)
        assert loss.growth(block, (0.5, 2.0)) == pytest.approx(max(worst), abs=1e-4)


def test_a_loss_that_is_no_number_counts_as_hopeless():
    subject = tiny_subject()
    assert NeutralLoss(subject).growth(1, (float("nan"),)) == 100
