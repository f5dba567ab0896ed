"""Passes that start from a recorded prefix, with tiny models of several architectures."""

import pytest
import torch

from larf_curate.models.blocks import decoder_blocks
from larf_curate.training.shared_prefix import can_resume, recorded, resumed
from tests.fixtures.tiny import tiny_model

IDS = torch.arange(3, 9)[None]


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Gemma2", "GPTNeoX", "Qwen3Moe"])
def test_a_resumed_pass_gives_the_logits_and_gradients_of_a_whole_one(name):
    model = tiny_model(name)
    blocks = decoder_blocks(model)
    assert can_resume(model, blocks[:1])
    weights = list(model.parameters())
    ends = []
    with recorded(blocks[0], (), lambda: ends.append(1)) as prefix:
        whole = model(IDS).logits
    assert ends == [1]
    expected = torch.autograd.grad(whole.logsumexp(-1).sum(), weights, allow_unused=True, retain_graph=True)
    seen = []
    blocks[0].register_forward_pre_hook(lambda *_: seen.append(len(seen)))
    inner = next(module for module in blocks[0].modules() if isinstance(module, torch.nn.Linear))
    inner.register_forward_pre_hook(lambda *_: pytest.fail("the prefix is computed again"))
    with resumed(prefix, blocks[:1], ()):
        found = model(IDS).logits
    assert seen == [0]
    assert torch.equal(found, whole)
    for one, other in zip(
        torch.autograd.grad(found.logsumexp(-1).sum(), weights, allow_unused=True), expected, strict=True
    ):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_a_block_computes_again_afterwards_also_with_a_forward_method_of_its_own():
    model = tiny_model()
    blocks = decoder_blocks(model)
    own = blocks[0].forward = lambda *args, forward=blocks[0].forward, **options: forward(*args, **options)
    with recorded(blocks[1], (), lambda: None) as prefix:
        model(IDS)
    with pytest.raises(ValueError, match="stop"), resumed(prefix, blocks[:2], ()):
        raise ValueError("stop")
    assert blocks[0].forward is own
    assert "forward" not in blocks[1].__dict__
    assert not any(block._forward_hooks for block in blocks)


def test_later_blocks_draw_the_dropout_of_the_recorded_pass():
    model = tiny_model(attention_dropout=0.5).train()
    blocks = decoder_blocks(model)
    with recorded(blocks[0], (), lambda: None) as prefix:
        whole = model(IDS).logits
    after = torch.get_rng_state()
    torch.manual_seed(5)
    with resumed(prefix, blocks[:1], ()):
        assert torch.equal(model(IDS).logits, whole)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_model_whose_blocks_pass_on_more_than_states_is_not_resumed():
    model = tiny_model()
    blocks = decoder_blocks(model)
    passed = []
    first, last = blocks[0].forward, blocks[-1].forward
    blocks[0].forward = lambda states, *args, **options: passed.append(states) or first(states, *args, **options)
    blocks[-1].forward = lambda states, *args, **options: last(states + passed.pop(), *args, **options)
    assert not can_resume(model, blocks[:1])
    assert not model.training
