from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from larf_curate.errors import InputError, ModelError
from larf_curate.training import finetune
from larf_curate.training.finetune import fine_tune
from larf_curate.training.recipe import Recipe
from tests.fixtures.tiny import byte_tokenizer
from tests.fixtures.training_rows import TRIPLES, scored_rows

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QUICK = Recipe(epochs=1, batch_size=4, micro_batch_size=4, learning_rate=1e-2, max_length=128)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "sap"])
def test_the_same_recipe_and_seed_give_the_same_weights(start, tmp_path, method):
    recipe = Recipe(**{**QUICK.to_dict(), "method": method, "probe_blocks": "1"})
    runs = [
        fine_tune(start, scored_rows(8), tmp_path / str(i), recipe=recipe, seed=seed, references=TRIPLES)
        for i, seed in enumerate((1, 1, 2))
    ]
    weights = [{k: v for k, v in run.model.state_dict().items() if "lora" in k} for run in runs]
    assert weights[0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert (tmp_path / "0/adapter_model.safetensors").exists()


@pytest.mark.slow
def test_micro_batches_do_what_one_batch_does(start, tmp_path):
    runs = [
        fine_tune(
            start,
            scored_rows(8),
            tmp_path / str(size),
            recipe=Recipe(**{**QUICK.to_dict(), "method": "sap", "micro_batch_size": size}),
            references=TRIPLES,
        )
        for size in (4, 2)
    ]
    assert runs[0].state.global_step == runs[1].state.global_step == 2
    for (name, one), other in zip(runs[0].model.state_dict().items(), runs[1].model.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)


def test_a_recipe_that_cannot_be_is_refused(start, tmp_path):
    with pytest.raises(InputError, match="sft or sap"):
        Recipe(method="dpo")
    with pytest.raises(InputError, match="divides"):
        Recipe(batch_size=16, micro_batch_size=5)
    with pytest.raises(ModelError, match="no layer that the LoRA names"):
        fine_tune(start, scored_rows(8), tmp_path, recipe=Recipe(lora_targets=("c_attn",)))
    with pytest.raises(ModelError, match="cannot load .* from the Hub id|the Hub cannot be reached"):
        fine_tune(str(tmp_path / "none"), scored_rows(8), tmp_path, recipe=QUICK)


@pytest.mark.parametrize(
    "options",
    [{"learning_rate": float("nan")}, {"learning_rate": -1}, {"epochs": 0}, {"epochs": float("inf")}, {"lora_rank": -1},
     {"lora_alpha": 0}, {"batch_size": 0}, {"max_length": -5}, {"dtype": "int8"}, {"optimizer": "adam"},
     {"micro_batch_size": -1}, {"safe_cosine": float("nan")}, {"safe_cosine": 1.0}, {"beta": float("nan")},
     {"epsilon": -1.0}, {"contrastive_batch_size": 0}, {"probe_step": "adam"}, {"refusals": "theirs"}],
)  # fmt: skip
def test_recipes_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Recipe(**QUICK.to_dict() | options)


@pytest.mark.parametrize(
    ("accelerator", "batch", "processes", "longest", "rows"),
    [(False, 16, 1, 256, 1), (False, 16, 1, 1000, 1), (False, 16, 1, 60, 4), (False, 6, 1, 60, 3), (False, 16, 8, 9, 2),
     (True, 16, 1, 1000, 16), (True, 8, 1, 60, 8), (True, 20, 1, 60, 10)],
)  # fmt: skip
def test_a_micro_batch_fits_the_machine_and_divides_the_batch(
    monkeypatch, accelerator, batch, processes, longest, rows
):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    options = finetune._options(replace(QUICK, batch_size=batch, micro_batch_size=0), "x", 0, 0, longest)
    assert options["per_device_train_batch_size"] == rows
    assert rows * options["gradient_accumulation_steps"] * processes == batch


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "sap"])
def test_checkpointed_activations_change_nothing_and_an_optimizer_does(start, tmp_path, method):
    recipes = (QUICK, replace(QUICK, gradient_checkpointing=True), replace(QUICK, optimizer="adafactor"))
    plain, checkpointed, other = (
        fine_tune(
            start,
            scored_rows(8),
            tmp_path / str(number),
            recipe=replace(recipe, method=method, probe_blocks="1"),
            references=TRIPLES,
        )
        for number, recipe in enumerate(recipes)
    )
    assert plain.model.is_gradient_checkpointing is False
    assert checkpointed.model.is_gradient_checkpointing is True
    weights = [{k: v for k, v in run.model.state_dict().items() if "lora" in k} for run in (plain, checkpointed, other)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-4)
    assert any(not torch.allclose(weights[2][name], value) for name, value in weights[0].items())


def test_every_layer_that_is_named_for_the_lora_must_be_there(start, tmp_path):
    with pytest.raises(ModelError, match="no layer 'nope' for the LoRA"):
        fine_tune(start, scored_rows(8), tmp_path, recipe=replace(QUICK, lora_targets=("q_proj", "nope")))


@pytest.mark.slow
def test_sap_that_does_what_sft_does_is_told(start, tmp_path, caplog):
    for cosine in (0.0, -1.0):
        assert "does what SFT does" not in caplog.text
        recipe = replace(QUICK, method="sap", beta=0.0, safe_cosine=cosine, refusals="given", max_steps=1)
        fine_tune(start, scored_rows(4), tmp_path / str(cosine), recipe=recipe, references=TRIPLES)
    assert "does what SFT does" in caplog.text


def test_the_start_is_not_overwritten(start):
    with pytest.raises(InputError, match="holds the model to start from"):
        fine_tune(start, scored_rows(8), start, recipe=QUICK)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")
def test_rows_longer_than_learned_positions_lose_their_end(tmp_path):
    config = GPT2Config(vocab_size=258, n_positions=40, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    table = Dataset.from_list([{"instruction": "a", "output": "b" * 100}] * 4)
    recipe = replace(QUICK, lora_targets=("c_attn",))
    trained = fine_tune(str(tmp_path / "gpt2"), table, tmp_path / "out", recipe=recipe)
    assert len(trained.train_dataset[0]["input_ids"]) == 40


def test_processes_share_a_batch(monkeypatch):
    for processes, size, steps in ((1, 4, 1), (2, 2, 1), (4, 1, 1)):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        options = finetune._options(QUICK, "x", 0, 0, 64)
        assert (options["per_device_train_batch_size"], options["gradient_accumulation_steps"]) == (size, steps)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes can share, got 4"):
        finetune._options(QUICK, "x", 0, 0, 64)
