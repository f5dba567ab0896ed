import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from larf_curate.errors import ModelError
from larf_curate.models.blocks import decoder_blocks, projections, scaled
from tests.fixtures.tiny import SCALED, tiny_model

ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
SEVEN = {*ATTENTION, *(f"mlp.{name}_proj.weight" for name in ("up", "gate", "down"))}
NAMES = {
    "Llama": SEVEN,
    "Qwen2": SEVEN,
    "Gemma2": SEVEN,
    "Gemma4Text": SEVEN | {"per_layer_projection.weight"},
    "Olmo2": SEVEN,
    "Phi3": {f"self_attn.{n}_proj.weight" for n in ("qkv", "o")}
    | {f"mlp.{n}_proj.weight" for n in ("gate_up", "down")},
    "Falcon": {f"self_attention.{n}.weight" for n in ("query_key_value", "dense")}
    | {f"mlp.{n}.weight" for n in ("dense_h_to_4h", "dense_4h_to_h")},
    "Mpt": {f"attn.{n}.weight" for n in ("Wqkv", "out_proj")} | {f"ffn.{n}.weight" for n in ("up_proj", "down_proj")},
    "GPTNeoX": {f"attention.{n}.weight" for n in ("query_key_value", "dense")}
    | {f"mlp.{n}.weight" for n in ("dense_h_to_4h", "dense_4h_to_h")},
}


@pytest.mark.parametrize("architecture", SCALED)
def test_the_projections_are_the_matrices_and_neither_norms_nor_biases(architecture):
    blocks = decoder_blocks(tiny_model(architecture))
    assert len(blocks) == 3
    assert set(projections(blocks[1])) == NAMES[architecture]


@pytest.mark.parametrize("architecture", ["Qwen2", "GPTNeoX"])
def test_scaling_touches_the_projections_of_one_block_only_and_undoes_it_exactly(architecture):
    model = tiny_model(architecture)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with scaled(decoder_blocks(model)[1], 0.7):
        for name, weight in model.named_parameters():
            inside = any(name.endswith(f".1.{part}") for part in NAMES[architecture])
            assert torch.equal(weight, before[name] * 0.7 if inside else before[name]), name
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_in_bfloat16_are_restored_bit_for_bit_after_an_error(error):
    model = tiny_model().bfloat16()
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(error), scaled(decoder_blocks(model)[0], 1.3):
        raise error
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_experts_are_scaled_and_their_router_is_not():
    block = decoder_blocks(tiny_model("Qwen3Moe"))[0]
    names = set(projections(block))
    assert {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", *ATTENTION} == names


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.19 on transformers 5.23
def test_scaling_a_block_with_an_adapter_equals_scaling_it_with_the_adapter_merged():
    torch.manual_seed(1)
    ids = torch.tensor([[1, 5, 9, 12]])
    model = get_peft_model(
        tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    )
    with torch.no_grad(), scaled(decoder_blocks(model)[1], 1.3):
        adapted = model(ids).logits
    merged = model.merge_and_unload()
    with torch.no_grad(), scaled(decoder_blocks(merged)[1], 1.3):
        torch.testing.assert_close(adapted, merged(ids).logits, rtol=1e-4, atol=1e-4)


def test_quantised_weights_are_refused_with_a_remedy():
    block = decoder_blocks(tiny_model())[0]
    block.mlp.up_proj.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match="without quantising"):
        projections(block)


def test_a_model_without_blocks_and_a_block_without_projections_are_errors():
    with pytest.raises(ModelError, match="decoder blocks"):
        decoder_blocks(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="projection weights"):
        projections(nn.LayerNorm(3))


def test_an_adapter_that_normalises_its_weights_is_refused():
    options = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    with pytest.raises(ModelError, match="DoRA"):
        projections(decoder_blocks(get_peft_model(tiny_model(), options))[0])
