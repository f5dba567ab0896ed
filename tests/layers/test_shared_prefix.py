from contextlib import nullcontext

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from torch.nn.functional import linear

from larf_curate.layers import shared_prefix
from larf_curate.layers.shared_prefix import sharing_prefix
from larf_curate.models.attention import float32_attention
from larf_curate.models.hooks import forward_hooks
from tests.fixtures.tiny import SCALED, tiny_subject

IDS = torch.tensor([[4, 5, 6, 7, 8, 9, 10], [4, 5, 6, 7, 10, 11, 0], [4, 5, 6, 9, 8, 4, 0]])
PREFIX = 3


def embedding_gradients(subject, *contexts, ids=IDS):
    """Last logits of every row, and the gradient of one of them in each row at the embeddings."""
    embeddings = []
    after = [(subject.model.get_input_embeddings(), lambda _m, _i, out: embeddings.append(out.requires_grad_()))]
    with forward_hooks(after), contexts[0] if contexts else nullcontext():
        logits = subject.model(input_ids=ids, use_cache=False).logits[[0, 1, 2], [6, 5, 5]]
        (gradient,) = torch.autograd.grad(logits[:, 4].sum(), embeddings)
    return logits.detach(), gradient


@pytest.mark.parametrize("architecture", SCALED)
def test_logits_and_the_gradients_of_each_row_are_those_of_whole_rows(architecture):
    subject = tiny_subject(architecture)
    subject.model.double()
    with subject.frozen():
        want = embedding_gradients(subject)
        got = embedding_gradients(subject, sharing_prefix(subject.blocks, IDS))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert want[1][:, :PREFIX].std(dim=0).max() > 0  # rows have the same prefix and other gradients there


def test_rows_that_are_all_the_same_have_the_same_results():
    subject, ids = tiny_subject(), IDS[[0, 0, 0]]
    subject.model.double()
    with subject.frozen():
        want = embedding_gradients(subject, ids=ids)
        got = embedding_gradients(subject, sharing_prefix(subject.blocks, ids), ids=ids)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_the_linear_layers_of_blocks_compute_the_common_tokens_once_and_are_as_before_afterwards(monkeypatch):
    subject, counts = tiny_subject(), []

    def counted(rows, *args):
        counts.append(rows.shape[:-1].numel())
        return linear(rows, *args)

    monkeypatch.setattr(shared_prefix, "linear", counted)
    with subject.frozen():
        embedding_gradients(subject, sharing_prefix(subject.blocks, IDS))
    assert len(counts) == 7 * len(subject.blocks)
    assert set(counts) == {IDS.numel() - 2 * PREFIX}
    assert not any("forward" in vars(module) for module in subject.model.modules())


class Packed(torch.Tensor):
    """Weights like those of torchao: of a dtype that they are not stored in, and with a product of their own."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if "matmul" in getattr(function, "__name__", ""):
            raise NotImplementedError
        found = super().__torch_function__(function, types, args, kwargs or {})
        return found.as_subclass(torch.Tensor) if function is linear else found


def test_linear_layers_with_weights_of_another_kind_keep_their_own_product():
    subject = tiny_subject()
    for module in subject.blocks.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().as_subclass(Packed))
    with subject.frozen():
        want = embedding_gradients(subject)
        got = embedding_gradients(subject, sharing_prefix(subject.blocks, IDS))
    torch.testing.assert_close(got, want)


class Doubling(ModelHook):
    def post_forward(self, module, output):
        return 2 * output


def test_hooks_of_accelerate_still_run_and_stay():
    subject = tiny_subject()
    hooked = subject.blocks[1].mlp.down_proj
    add_hook_to_module(hooked, Doubling())
    own = hooked.forward
    with subject.frozen():
        want = embedding_gradients(subject)
        got = embedding_gradients(subject, sharing_prefix(subject.blocks, IDS))
    torch.testing.assert_close(got, want)
    assert hooked.forward is own


def test_attention_in_half_precision_is_computed_in_float32():
    query, key, value = (torch.randn(2, 3, 9, 8, dtype=torch.bfloat16) for _ in range(3))
    mask = torch.zeros(2, 1, 9, 9, dtype=torch.bfloat16).masked_fill(torch.rand(2, 1, 9, 9) < 0.3, -9)
    attention = torch.nn.functional.scaled_dot_product_attention
    with float32_attention():
        got = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        named = torch.nn.functional.scaled_dot_product_attention(query=query, key=key, value=value, attn_mask=mask)
    assert torch.equal(named, got)
    want = attention(query.float(), key.float(), value.float(), attn_mask=mask.float())
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want.bfloat16())
    assert not torch.equal(got, attention(query, key, value, attn_mask=mask))
