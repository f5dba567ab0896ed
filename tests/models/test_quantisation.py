"""Quantised checkpoints: what is loaded has the rounded weights; what cannot be loaded is refused with a remedy."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from larf_curate.errors import ModelError
from larf_curate.models.checkpoint import check_weights
from larf_curate.models.quantisation import LIBRARIES
from larf_curate.models.source import ModelSource, load_causal_lm, load_config, load_decoder
from tests.fixtures.models import save_tiny

GROUP = 32
"""Inputs that share a scale; the tiny model has one or two groups in each row."""
IDS = torch.arange(12)[None]
SETTINGS = {
    "awq": {"bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "bitsandbytes": {"load_in_4bit": True},
    "compressed-tensors": {"config_groups": {}},
    "gptq": {"bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    "hqq": {"quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}}},
    "torchao": {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}, "_version": 1}}},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose matrices have multiples of 32 rows, which kernels of GPTQ and AWQ want."""
    return save_tiny("Llama", tmp_path_factory.mktemp("wide") / "model", hidden_size=64, intermediate_size=128)


def with_settings(folder, to, settings):
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return to


def packed(values, dim):
    """Eight values of 4 bits in each word of 32, the first in the lowest bits."""
    groups = values.long().movedim(dim, -1).unflatten(-1, (-1, 8))
    words = (groups << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int().movedim(-1, dim).contiguous()


def compressed_tensors(codes, scale, zero, symmetric):
    found = {"weight_packed": packed(codes, 1), "weight_scale": scale, "weight_shape": torch.tensor(codes.shape)}
    return found if symmetric else found | {"weight_zero_point": packed(zero, 0)}


def gptq(codes, scale, zero, symmetric):
    groups = torch.arange(codes.shape[1]) // GROUP
    zeros = packed(zero.T - 1, 1)  # the first version of the format stores them less one
    return {"qweight": packed(codes.T, 0), "qzeros": zeros, "scales": scale.T.contiguous(), "g_idx": groups.int()}


def awq(codes, scale, zero, symmetric):
    def ordered(values):
        return values.T.unflatten(-1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(-2)

    return {"qweight": packed(ordered(codes), 1), "qzeros": packed(ordered(zero), 1), "scales": scale.T.contiguous()}


def quantised(folder, to, layout, settings, *, symmetric=True):
    """Round all matrices of the blocks to 4 bits: a folder with the codes, and the weights that they stand for."""
    weights, stored, rounded = load_file(folder / "model.safetensors"), {}, {}
    for name, weight in weights.items():
        stored[name] = rounded[name] = weight
        if ".layers." not in name or weight.ndim != 2:
            continue
        grouped = weight.unflatten(1, (-1, GROUP))
        if symmetric:
            scale, zero = grouped.abs().amax(-1) / 7, torch.full(grouped.shape[:2], 8)
        else:
            scale = (grouped.amax(-1) - grouped.amin(-1)) / 15
            zero = (-grouped.amin(-1) / scale).round().clamp(0, 15).long()
        scale = scale.half().float()
        codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, 15)
        rounded[name] = ((codes - zero[..., None]) * scale[..., None]).flatten(1)
        parts = layout(codes.flatten(1), scale, zero, symmetric)
        del stored[name]
        stored |= {f"{name.removesuffix('weight')}{part}": value for part, value in parts.items()}
    with_settings(folder, to, settings)
    save_file(stored, to / "model.safetensors", metadata={"format": "pt"})
    return rounded


def check_states(folder, to, rounded, tolerance):
    """Both a part of the model and all of it must have the states of the rounded weights."""

    def states(model):
        return model(IDS, output_hidden_states=True).hidden_states[2].detach()

    truth = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = states(truth)
    truth.load_state_dict(rounded, strict=False)
    expected, source = states(truth), ModelSource(model_id=str(to), dtype="float32")
    part, whole = load_decoder(source, load_config(source), 3, torch.float32), load_causal_lm(source, torch.float32)
    for found in (states(part), states(whole)):
        assert (found - expected).norm() < tolerance * expected.norm()
    assert (plain - expected).norm() > 10 * tolerance * expected.norm()


@pytest.mark.parametrize("symmetric", [True, False])
def test_compressed_tensors_are_loaded_as_the_weights_they_stand_for(tiny_llama, tmp_path, symmetric):
    pytest.importorskip("compressed_tensors")
    kind = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": symmetric}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": kind, "format": "pack-quantized"}},
        "ignore": ["lm_head"],
    }
    to = tmp_path / "model"
    rounded = quantised(tiny_llama, to, compressed_tensors, settings, symmetric=symmetric)
    check_states(tiny_llama, to, rounded, 1e-4)


@pytest.mark.filterwarnings("default")  # of gptqmodel
@pytest.mark.parametrize(("method", "layout"), [("gptq", gptq), ("awq", awq)])
def test_gptq_and_awq_are_loaded_as_the_weights_they_stand_for(wide, tmp_path, method, layout):
    pytest.importorskip("gptqmodel")
    to = tmp_path / "model"
    rounded = quantised(wide, to, layout, {"quant_method": method} | SETTINGS[method])
    check_states(wide, to, rounded, 0.005)


@pytest.mark.parametrize("method", LIBRARIES)
def test_a_missing_library_is_named_with_the_method_and_the_remedy(tiny_llama, tmp_path, method):
    if any(find_spec(name.replace("-", "_")) for name in LIBRARIES[method]):
        pytest.skip("installed here")
    to = with_settings(tiny_llama, tmp_path / "model", {"quant_method": method} | SETTINGS[method])
    source = ModelSource(model_id=str(to), dtype="float32")
    with pytest.raises(
        ModelError, match=rf"quantised \({method}\): pip install {' '.join(LIBRARIES[method])}, or"
    ) as found:
        load_decoder(source, load_config(source), 3, torch.float32)
    assert "\n" not in str(found.value)
    with pytest.raises(ModelError, match=rf"quantised \({method}\)"):
        load_causal_lm(source, torch.float32)


def test_missing_buffers_of_quantised_weights_are_refused(tiny_llama):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    model.model.layers[1].mlp.register_buffer("qweight", torch.zeros(2, 2))
    info = {"missing_keys": {"model.layers.1.mlp.qweight"}, "unexpected_keys": set(), "mismatched_keys": set()}
    check_weights(model, info, "model", head=True)  # a constant
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ModelError, match=r"lacks 1 weights .*layers\.1\.mlp\.qweight"):
        check_weights(model, info, "model", head=True)
