import numpy as np
import pytest
import torch

from larf_curate.errors import ModelError
from larf_curate.layers.gradient import block_gradients
from larf_curate.layers.openings import Openings
from larf_curate.layers.subject import Subject
from larf_curate.models.blocks import scaled
from tests.fixtures.tiny import PROMPTS, SCALED, tiny_model, tiny_subject, word_tokenizer

OPENINGS = Openings((4, 5), (6, 7), 8, (9,), (10, 11))
STEP = 2e-3
"""Small against the curvature, large against the rounding of norms, which are computed in float32."""


def log_odds(subject, prompts):
    """The definition, text by text, in the model's precision."""
    values = []
    for ids in prompts:
        first, second = torch.softmax(subject.model(torch.tensor([[*ids, 8]])).logits[0, -2:].double(), -1)
        refusing = first[4] + first[5] + first[8] * second[9]
        complying = first[6] + first[7] + first[8] * (second[10] + second[11])
        values.append(float(torch.log(refusing / complying)))
    return np.array(values)


@pytest.mark.parametrize("architecture", SCALED)
def test_gradients_equal_finite_differences_of_the_definition_for_every_block_and_prompt(architecture):
    subject = tiny_subject(architecture)
    subject.model.double()
    prompts = subject.encode_prompts(PROMPTS, new_tokens=4)
    want = np.zeros((3, len(prompts)))
    with torch.no_grad():
        for block, module in enumerate(subject.blocks):
            for sign in (1, -1):
                with scaled(module, 1 + sign * STEP):
                    want[block] += sign * log_odds(subject, prompts) / (2 * STEP)
    with subject.frozen():
        got = block_gradients(subject, prompts, OPENINGS)
    np.testing.assert_allclose(got, want, rtol=5e-3, atol=2e-3)


def test_gradients_leave_no_hooks_and_no_gradients_of_weights():
    subject = tiny_subject()
    with subject.frozen():
        block_gradients(subject, subject.encode_prompts(PROMPTS, new_tokens=4), OPENINGS)
    assert all(weight.grad is None and weight.requires_grad for weight in subject.model.parameters())
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_experts_are_refused_with_another_method_to_use():
    subject = tiny_subject("Qwen3Moe")
    with subject.frozen(), pytest.raises(ModelError, match="method='forward'"):
        block_gradients(subject, subject.encode_prompts(PROMPTS, new_tokens=4), OPENINGS)


def test_a_model_in_training_is_put_to_rest_and_back():
    model = tiny_model().train()
    model.lm_head.weight.requires_grad_(False)
    subject = Subject(model, word_tokenizer(), "tiny")
    with subject.frozen():
        assert not model.training
        assert not any(weight.requires_grad for weight in model.parameters())
    assert model.training
    assert model.model.layers[0].training
    assert [name for name, w in model.named_parameters() if not w.requires_grad] == ["lm_head.weight"]
