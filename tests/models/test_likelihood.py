import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from larf_curate.models import likelihood
from larf_curate.models.likelihood import AnswerHead, AnswerLikelihood
from tests.fixtures.tiny import tiny_model

HEADS = {
    "Llama": {},
    "Qwen2": {"tie_word_embeddings": True},
    "Gemma2": {"final_logit_softcapping": 1.5},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 7.0},
    "Phi3": {},
    "GPTNeoX": {},
    "Qwen3Moe": {"experts_implementation": "eager"},
    "Gemma3nText": {"final_logit_softcapping": 1.5},
    "Gemma4Text": {"final_logit_softcapping": 1.5},
    "Bloom": {},
    "Mamba": {},
}
"""Architectures that differ in what they do to logits."""
ROWS = {"input_ids": torch.arange(3, 33).reshape(3, 10), "attention_mask": torch.ones(3, 10, dtype=torch.long)}
ROWS["attention_mask"][1, 7:] = 0


def labels():
    found = ROWS["input_ids"].masked_fill(ROWS["attention_mask"] == 0, -100)
    found[:, :4] = -100
    found[2, 6:8] = -100
    return found


def plain_log_probs(model, wanted):
    """From all logits: the definition."""
    logits = model(**ROWS).logits[:, :-1]
    logs = logits.log_softmax(-1).gather(-1, wanted[:, 1:].clamp(min=0)[..., None])[..., 0]
    return torch.where(wanted[:, 1:] == -100, 0.0, logs)


def learned(model, wanted):
    head = AnswerHead(model)
    assert head.splits
    mask = wanted[:, 1:] != -100
    output = head.decode(**ROWS)
    return head.predictions(output, output.last_hidden_state[:, :-1][mask], wanted[:, 1:][mask]), mask


def adapted(model, how):
    if how == "all weights":
        return model
    targets = "all-linear" if how == "lora" else ["lm_head", "q_proj"]
    return get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


@pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning")
@pytest.mark.parametrize("positions", [128, 2])
@pytest.mark.parametrize(
    ("name", "how"),
    [*((name, how) for name in HEADS for how in ("all weights", "lora") if (name, how) != ("Mamba", "lora")),
     *((name, "lora of the head") for name in ("Llama", "Gemma2", "Cohere"))],
)  # fmt: skip
def test_log_probs_and_gradients_are_those_of_all_logits(name, how, positions, monkeypatch):
    monkeypatch.setattr(likelihood, "POSITIONS", positions)
    model = adapted(tiny_model(name, dtype=torch.float64, **HEADS[name]), how)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    factors = torch.arange(1.0, 4.0, dtype=torch.float64)[:, None]  # every row has a gradient of its own
    expected = plain_log_probs(model, labels())
    gradients = torch.autograd.grad((expected * factors).sum(), weights, allow_unused=True)
    found, mask = learned(model, labels())
    torch.testing.assert_close(found.log_probs, expected[mask], rtol=1e-10, atol=1e-10)
    ours = torch.autograd.grad((found.log_probs * factors.expand(mask.shape)[mask]).sum(), weights, allow_unused=True)
    assert any(gradient is not None and gradient.abs().max() > 1e-3 for gradient in gradients)
    for one, other in zip(ours, gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_entropy_and_the_most_probable_token():
    model = tiny_model(dtype=torch.float64)
    found, mask = learned(model, labels())
    chances = model(**ROWS).logits[:, :-1][mask].softmax(-1)
    entropy = -(chances * chances.log()).sum(-1)
    torch.testing.assert_close(found.entropy, entropy, rtol=1e-10, atol=1e-10)
    assert torch.equal(found.is_top1, chances.argmax(-1) == labels()[:, 1:][mask])


@pytest.mark.parametrize("name", list(HEADS))
def test_the_log_probability_of_an_answer_is_the_sum_over_its_tokens(name):
    model = tiny_model(name, **HEADS[name])
    found = AnswerLikelihood(model)(labels(), **ROWS)
    torch.testing.assert_close(found, plain_log_probs(model, labels()).sum(1), rtol=1e-5, atol=1e-5)


def test_a_model_that_changes_logits_by_other_means_is_read_as_a_whole():
    model = tiny_model()
    unhooked = AnswerHead(model)
    model.get_decoder().layers[0].register_forward_hook(lambda *_: None)
    assert unhooked.splits
    whole = model.forward
    model.forward = lambda *args, **options: _shifted(whole(*args, **options))
    assert not AnswerHead(model).splits
    torch.testing.assert_close(AnswerLikelihood(model)(labels(), **ROWS), plain_log_probs(model, labels()).sum(1))


def test_a_head_that_needs_more_than_states_is_read_as_a_whole(monkeypatch):
    model = tiny_model()
    whole = type(model).forward

    def forward(self, *, attention_mask, **inputs):
        return whole(self, attention_mask=attention_mask, **inputs)

    monkeypatch.setattr(type(model), "forward", forward)
    assert not AnswerHead(model).splits
    torch.testing.assert_close(AnswerLikelihood(model)(labels(), **ROWS), plain_log_probs(model, labels()).sum(1))


def _shifted(output):
    output.logits = output.logits + torch.arange(output.logits.shape[-1])
    return output


def test_learned_prompts_are_left_to_peft():
    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert not AnswerHead(model).splits


def test_no_logits_of_all_positions_are_made(monkeypatch):
    monkeypatch.setattr(likelihood, "POSITIONS", 2)
    model = tiny_model()
    seen = []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-2]))
    answer = AnswerLikelihood(model)
    seen.clear()  # the check on a few tokens
    answer(labels(), **ROWS)
    assert sum(seen) == (labels()[:, 1:] != -100).sum()
    assert max(seen) <= 2


def test_an_answer_without_tokens_has_probability_1_and_a_gradient():
    model = tiny_model()
    nothing = torch.full_like(labels(), -100)
    assert AnswerLikelihood(model)(nothing, **ROWS).tolist() == [0.0, 0.0, 0.0]
    found, _ = learned(model, nothing)
    found.log_probs.sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.model.layers.parameters())
