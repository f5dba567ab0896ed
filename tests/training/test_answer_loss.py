"""Training on learned positions only, against ``trl.SFTTrainer`` and against the plain loss."""

import copy

import pytest
import torch
from peft import LoraConfig
from torch.nn import functional
from trl import SFTConfig, SFTTrainer

from larf_curate.conversation.training_rows import training_rows
from larf_curate.training.answer_loss import AnswerLossTrainer, sorted_by_length
from tests.fixtures.tiny import BYTES, byte_tokenizer, tiny_model
from tests.fixtures.training_rows import scored_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning"),
]
TOKENIZER = byte_tokenizer()
ROUTED = {"output_router_logits": True, "router_aux_loss_coef": 0.5}


def trained(kind, folder, model, *, lora=False, **options):
    args = SFTConfig(
        output_dir=str(folder),
        **{"max_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0,
           "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "logging_steps": 1, "report_to": "none",
           "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "bf16": False,
           "activation_checkpointing": False} | options,
    )  # fmt: skip
    adapter = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
    table = training_rows(scored_rows(8), TOKENIZER)
    trainer = kind(copy.deepcopy(model), args, train_dataset=table, processing_class=TOKENIZER, peft_config=adapter)
    trainer.train()
    return trainer


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("Llama", {}), ("Qwen2", {"tie_word_embeddings": True}), ("Gemma2", {"final_logit_softcapping": 2.0}),
     ("Cohere", {"logit_scale": 0.3}), ("Qwen3Moe", {}), ("Qwen3Moe", ROUTED)],
)  # fmt: skip
def test_it_learns_and_logs_what_trl_does(tmp_path, name, changes, lora):
    model = tiny_model(name, vocabulary=BYTES, **changes)
    one, other = (trained(kind, tmp_path, model, lora=lora) for kind in (AnswerLossTrainer, SFTTrainer))
    for ours, theirs in zip(one.state.log_history[:2], other.state.log_history[:2], strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "num_tokens"):
            # The metrics are means over micro-batches, whose rows differ.
            tolerance = 0.2 if key in ("entropy", "mean_token_accuracy") else 1e-4 if key == "grad_norm" else 1e-5
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance, abs=1e-5), key
    for (name, value), wanted in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_one_step_is_that_of_the_mean_over_all_learned_tokens_in_float64(tmp_path, accumulation):
    model = tiny_model("GPTNeoX", vocabulary=BYTES, dtype=torch.float64)  # its norms compute in float64
    options = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = trained(AnswerLossTrainer, tmp_path, model, max_steps=1, **options)
    losses, count = 0.0, 0
    for row in training_rows(scored_rows(8), TOKENIZER):
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        losses += functional.cross_entropy(logits, torch.tensor(row["labels"][1:]), reduction="sum")
        count += sum(label != -100 for label in row["labels"][1:])
    gradients = torch.autograd.grad(losses / count, list(model.parameters()))
    for weight, before, gradient in zip(trainer.model.parameters(), model.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight, before - 1e-2 * gradient, rtol=1e-10, atol=1e-12)


def test_bfloat16_and_checkpointed_activations_train_alike(tmp_path):
    model = tiny_model(vocabulary=BYTES)
    plain, checkpointed = (
        trained(AnswerLossTrainer, tmp_path, model, activation_checkpointing=on) for on in (False, True)
    )
    for one, other in zip(plain.model.parameters(), checkpointed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for on in (False, True):
        mixed = trained(AnswerLossTrainer, tmp_path, model, bf16=True, activation_checkpointing=on)
        assert mixed.state.log_history[0]["loss"] == pytest.approx(plain.state.log_history[0]["loss"], rel=0.02)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_attention_on_cpus_is_in_float32_except_where_blocks_are_computed_again(tmp_path, checkpointed):
    trainer = trained(
        AnswerLossTrainer, tmp_path, tiny_model(vocabulary=BYTES), bf16=True, activation_checkpointing=checkpointed
    )
    query, key, value = (torch.randn(1, 2, 9, 8, dtype=torch.bfloat16) for _ in range(3))
    attention = functional.scaled_dot_product_attention
    with trainer.compute_loss_context_manager():
        got = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    wide = attention(query.float(), key.float(), value.float(), is_causal=True).bfloat16()
    assert torch.equal(got, attention(query, key, value, is_causal=True) if checkpointed else wide)
    assert not torch.equal(wide, attention(query, key, value, is_causal=True))


def test_no_logits_of_a_whole_batch_are_made(tmp_path):
    model = tiny_model(vocabulary=BYTES)
    trainer = trained(AnswerLossTrainer, tmp_path, model, max_steps=1)
    seen = []
    trainer.model.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[-2]))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=1)
    assert sum(seen) == (batch["labels"][:, 1:] != -100).sum() < batch["labels"].numel() / 2


def test_the_trained_model_generates_and_has_its_own_logits_again(tmp_path):
    model = tiny_model(vocabulary=BYTES)
    trainer = trained(AnswerLossTrainer, tmp_path, model, max_steps=1)
    ids = torch.tensor([[5, 6, 7]])
    assert trainer.model(ids).logits.shape == (1, 3, BYTES)
    assert trainer.model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] > 3


def batch_of(*lengths, width):
    """Right-padded rows; the first token names the row, the last one is learned."""
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, length in enumerate(lengths):
        ids[row, :length] = length
        mask[row, :length] = 1
        labels[row, length - 1] = length
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def test_rows_of_micro_batches_are_sorted_by_length_and_keep_their_labels():
    found = sorted_by_length([batch_of(3, 9, width=12), batch_of(2, 7, width=7), batch_of(5, width=5)])
    assert [batch["input_ids"].shape for batch in found] == [(2, 9), (2, 5), (1, 2)]
    for batch in found:
        for ids, mask, labels in zip(*(batch[k] for k in ("input_ids", "attention_mask", "labels")), strict=True):
            length = int(mask.sum())
            want = batch_of(length, width=len(ids))
            assert ids.tolist() == want["input_ids"][0].tolist()
            assert labels.tolist() == want["labels"][0].tolist()
    assert [int(m) for b in found for m in b["attention_mask"].sum(1)] == [9, 7, 5, 3, 2]


def test_other_batches_are_left_alone():
    left = batch_of(3, 2, width=4)
    left["attention_mask"] = left["attention_mask"].flip(1)
    for batches in ([left, left], [batch_of(2, 3, width=3)], [{**batch_of(2, width=2), "pixel_values": 1}] * 2):
        assert sorted_by_length(batches) is batches
