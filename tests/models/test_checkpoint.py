"""Checkpoints whose weights are not those of the model: refused with the names and the remedy."""

import json
import shutil

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from larf_curate.errors import ModelError
from larf_curate.models.adapters import weights_of
from larf_curate.models.source import (
    ModelSource,
    check_checkpoint,
    load_causal_lm,
    load_config,
    load_decoder,
    weights_digest,
)
from tests.fixtures.models import save_tiny

PREFIXES = {
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module.": lambda name: f"module.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "student.": lambda name: f"student.{name}",
    "_checkpoint_wrapped_module.": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
}


@pytest.fixture
def changed(tiny_llama, tmp_path):
    """Copies the model with its weights changed by a function, and its config by keywords."""

    def change(function, **config):
        folder = tmp_path / "model"
        shutil.copytree(tiny_llama, folder)
        weights = {name: weight.clone() for name, weight in function(load_file(folder / "model.safetensors")).items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return change


def decoder(folder, **given):
    """The first three of five blocks."""
    source = ModelSource(model_id=str(folder), **given)
    return load_decoder(source, load_config(source), 3, torch.float32)


def whole(folder, **given):
    return load_causal_lm(ModelSource(model_id=str(folder), **given), torch.float32)


def same(one, other):
    weights = dict(other.named_parameters())
    return all(torch.equal(weight, weights[name]) for name, weight in one.named_parameters())


@pytest.mark.parametrize("load", [decoder, whole])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_the_names_is_named_and_can_be_removed(changed, tiny_llama, prefix, load):
    folder = changed(lambda weights: {PREFIXES[prefix](name): weight for name, weight in weights.items()})
    with pytest.raises(ModelError, match=f"lacks .* weights of .*with the prefix '{prefix}'.*--strip-prefix {prefix}"):
        load(folder)
    assert same(load(folder, strip_prefix=prefix), load(tiny_llama))


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_a_missing_weight_is_named(changed, lost):
    folder = changed(lambda weights: {name: weight for name, weight in weights.items() if name != lost})
    for load in (decoder, whole):
        with pytest.raises(ModelError, match=f"lacks 1 weights of .*{lost.removeprefix('model.')}; download or save"):
            load(folder)
    with pytest.raises(ModelError, match=f"lacks 1 weights of .*{lost}"):
        check_checkpoint(ModelSource(model_id=str(folder)))


def test_a_complete_checkpoint_passes_the_check_before_training(tiny_llama, tiny_qwen2):
    check_checkpoint(ModelSource(model_id=str(tiny_llama)))
    check_checkpoint(ModelSource(model_id=str(tiny_qwen2)))


@pytest.mark.parametrize("lost", ["lm_head", "layers.4"])
def test_weights_that_are_not_used_may_be_missing(changed, tiny_llama, lost):
    folder = changed(lambda weights: {name: weight for name, weight in weights.items() if lost not in name})
    assert same(decoder(folder), decoder(tiny_llama))
    with pytest.raises(ModelError, match=f"lacks .*{lost}"):
        whole(folder)


@pytest.mark.parametrize("name", ["q_proj.bias", "q_proj.lora_A.weight"])
def test_a_weight_of_a_block_that_the_model_does_not_use_is_refused(changed, name):
    extra = {f"model.layers.1.self_attn.{name}": torch.ones(32)}
    folder = changed(lambda weights: weights | extra)
    for load in (decoder, whole):
        with pytest.raises(ModelError, match=f"has 1 weights that .* does not use.*layers.1.self_attn.{name}"):
            load(folder)


def test_other_heads_constants_and_deeper_blocks_may_be_left_over(changed, tiny_llama):
    names = ["score.weight", "v_head.summary.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"]
    extra = {name: torch.ones(4) for name in [*names, "model.layers.5.mlp.up_proj.weight"]}
    folder = changed(lambda weights: weights | extra)
    assert same(decoder(folder), decoder(tiny_llama))
    assert same(whole(folder), whole(tiny_llama))


def test_weights_of_another_shape_are_refused(changed):
    folder = changed(lambda weights: weights, intermediate_size=96)
    for load in (decoder, whole):
        with pytest.raises(ModelError, match=r"do not have the shape .*down_proj.weight with \(32, 64\) instead of"):
            load(folder)


def test_an_adapter_that_was_saved_without_merging_is_named(changed):
    def wrapped(weights):
        return {
            f"base_model.model.{name.replace('q_proj.', 'q_proj.base_layer.')}": weight
            for name, weight in weights.items()
        }

    with pytest.raises(ModelError, match="holds an adapter that was not merged: merge it"):
        decoder(changed(wrapped))


@pytest.fixture(params=["lora", "dora", "with embeddings"])
def adapter(request, tiny_llama, tmp_path):
    """A model with an adapter of a kind, and the folder of the adapter."""
    kinds = {
        "lora": {"target_modules": "all-linear"},
        "dora": {"target_modules": ["q_proj", "up_proj"], "use_dora": True},
        "with embeddings": {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    }
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", init_lora_weights=False, **kinds[request.param])
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tiny_llama), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "modules_to_save" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    return model.eval(), str(tmp_path / "adapter")


@torch.no_grad()
def test_an_adapter_gives_the_states_and_logits_of_peft(tiny_llama, adapter):
    model, folder = adapter
    ids = torch.arange(5, 30)[None]
    states = model(ids, output_hidden_states=True).hidden_states
    loaded = decoder(tiny_llama, adapter=folder)
    got = loaded(ids, output_hidden_states=True).hidden_states
    assert len(loaded.layers) == 3
    for block in range(3):  # the last state has passed the norm
        torch.testing.assert_close(got[block], states[block], atol=1e-3, rtol=1e-3)
    logits = whole(tiny_llama, adapter=folder)(ids).logits
    torch.testing.assert_close(logits, model(ids).logits, atol=1e-3, rtol=1e-3)


def test_an_adapter_changes_the_digest(tiny_llama, adapter, tmp_path):
    plain = weights_digest(ModelSource(model_id=str(tiny_llama)))
    one = weights_digest(ModelSource(model_id=str(tiny_llama), adapter=adapter[1]))
    file = weights_of(adapter[1])
    save_file({name: weight + 1 for name, weight in load_file(file).items()}, file)
    assert len({plain, one, weights_digest(ModelSource(model_id=str(tiny_llama), adapter=adapter[1]))}) == 3


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    folders = [
        save_tiny("Llama", tmp_path / "wide", width=64),
        save_tiny("GPTNeoX", tmp_path / "other"),
        save_tiny("Llama", tmp_path / "deep", layers=6),
    ]
    for folder in folders:
        with pytest.raises(ModelError, match="adapter"):
            whole(folder, adapter=adapter[1])


def test_an_adapter_with_a_weight_that_has_no_place_is_refused(tiny_llama, adapter):
    file = weights_of(adapter[1])
    save_file(load_file(file) | {"base_model.model.model.layers.1.gate.lora_A.weight": torch.ones(4, 32)}, file)
    with pytest.raises(ModelError, match="1 weights of the adapter .* do not belong to this model"):
        decoder(tiny_llama, adapter=adapter[1])


def test_an_adapter_stored_with_pickle_is_refused(tiny_llama, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"without adapter_model.safetensors: .*pickle \(.bin\) are not loaded"):
        decoder(tiny_llama, adapter=str(tmp_path))


class Code:
    """What a pickle may hold beside tensors: a call at loading."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("content", ["code", "damaged", "empty"])
def test_weights_in_a_pickle_with_code_or_damage_are_refused_in_one_line_and_not_run(changed, tmp_path, content):
    folder = changed(lambda states: states)
    (folder / "model.safetensors").unlink()
    weights = folder / "pytorch_model.bin"
    if content == "code":
        torch.save({"model.embed_tokens.weight": Code(tmp_path / "ran")}, weights)
    else:
        weights.write_bytes(b"\x80\x02damaged" if content == "damaged" else b"")
    with pytest.raises(ModelError) as refused:
        decoder(folder)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "ran").exists()
