import copy
import importlib
import math
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from trl import SFTConfig

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError, MissingExtraError, ModelError, ReferenceSetError, TrainingError
from larf_curate.training import SapConfig, SapTrainer, sap_lora, shared_prefix, training_rows
from larf_curate.training.answer_loss import AnswerLossTrainer
from larf_curate.training.callbacks import FiniteGuard
from tests.fixtures.tiny import BYTES, byte_model, byte_tokenizer, tiny_model
from tests.fixtures.training_rows import TRIPLES, tiny_rows

# peft 0.21 reads a name that transformers 5.23 deprecates
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TOKENIZER = byte_tokenizer()
COMMON = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "bf16": False,
    "activation_checkpointing": False,
}
SAP = {"epsilon": 1e-2, "beta": 0.1, "probe_blocks": "1", "contrastive_batch_size": 3}


def exact_model():
    """In float64 throughout: the norms of transformers compute in float32."""
    model = byte_model(dtype=torch.float64)
    for block in model.model.layers:
        for name in ("input_layernorm", "post_attention_layernorm"):
            norm = nn.RMSNorm(32, eps=model.config.rms_norm_eps, dtype=torch.float64)
            norm.load_state_dict(getattr(block, name).state_dict())
            setattr(block, name, norm)
    return model


def useful_loss(logits, labels, items):
    shifted = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    return shifted / items


def trainer(tmp_path, *, model=None, rows=None, references=TRIPLES, peft_config=None, **options):
    args = SapConfig(output_dir=str(tmp_path), **{**COMMON, **SAP, **options})
    rows = rows or training_rows(tiny_rows(), TOKENIZER)
    return SapTrainer(
        model or byte_model(),
        args,
        references=references,
        train_dataset=rows,
        processing_class=TOKENIZER,
        peft_config=peft_config,
    )


def plain_sft(tmp_path, *, model=None, peft_config=None, **options):
    args = SFTConfig(output_dir=str(tmp_path), **{**COMMON, **options})
    rows = training_rows(tiny_rows(), TOKENIZER)
    return AnswerLossTrainer(
        model or byte_model(), args, train_dataset=rows, processing_class=TOKENIZER, peft_config=peft_config
    )


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# --- the method against a straightforward reference in float64 -------------------------------------------------------


def answer_ids(prompt, answer):
    before = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    encode = lambda text: TOKENIZER(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    return encode(before), encode(f"{answer}<|im_end|>\n")


def log_prob(model, prompt, answer):
    """log p(answer | prompt), token by token, without batching."""
    before, after = answer_ids(prompt, answer)
    logs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum(logs[len(before) + i - 1, token] for i, token in enumerate(after))


def reference_step(model, batches, *, epsilon, beta, step, rate, cosine=-1.0):
    """One SAP step with SGD, written from the paper's formulas; the probe is a bias of block 1's down projection."""
    weights = [p for p in model.parameters() if p.requires_grad]
    loss = -sum(functional.logsigmoid(log_prob(model, p, s) - log_prob(model, p, u)) for p, u, s in TRIPLES) / 3
    g = torch.autograd.grad(loss, weights)
    norm = torch.cat([x.flatten() for x in g]).norm()
    size = torch.cat([w.flatten() for w in weights]).norm()
    moved = copy.deepcopy(model)
    for weight, direction in zip([p for p in moved.parameters() if p.requires_grad], g, strict=True):
        weight.data += epsilon * size * direction / norm
    items = sum((b["labels"][:, 1:] != -100).sum() for b in batches)
    there, here = (probe_gradient(m, batches, items) for m in (moved, model))
    change = there - here
    probe = beta * (change.sign() if step == "sign" else change / change.norm())
    loss = sum(probed_loss(model, b, items, probe) for b in batches)
    gradients = turned(torch.autograd.grad(loss, weights), [direction / norm for direction in g], cosine)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.data -= rate * gradient
    return norm, moved, probe


def turned(gradients, direction, cosine):
    """By the angle: the part across the direction stays, and the part along it grows to the cosine."""
    flat, way = (torch.cat([part.flatten() for part in parts]) for parts in (gradients, direction))
    across = flat - (flat @ way) * way
    if torch.cosine_similarity(flat, way, dim=0) < cosine:
        flat = across + across.norm() / math.tan(math.acos(cosine)) * way
    return [
        part.reshape(g.shape) for part, g in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)
    ]


def probed_loss(model, batch, items, probe):
    projection = model.get_decoder().layers[1].mlp.down_proj
    projection = getattr(projection, "base_layer", projection)
    projection.bias = torch.nn.Parameter(probe) if not isinstance(probe, torch.nn.Parameter) else probe
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    projection.bias = None
    return useful_loss(logits, batch["labels"], items)


def probe_gradient(model, batches, items):
    zero = torch.nn.Parameter(torch.zeros(32, dtype=torch.float64))
    return torch.autograd.grad(sum(probed_loss(model, b, items, zero) for b in batches), zero)[0]


def exact_lora():
    """In float64; all of its weights have gradients."""
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(exact_model(), lora, autocast_adapter_dtype=False).double()


@pytest.mark.parametrize(
    ("step", "accumulation", "kept", "checkpointing", "lora", "cosine"),
    [("unit", 1, 1, False, False, -1.0), ("sign", 1, 1, False, True, 0.5), ("unit", 2, 0, False, False, 0.5),
     ("unit", 2, 1, True, False, -1.0), ("unit", 2, 2, False, True, -1.0), ("unit", 2, 2, True, True, 0.5)],
)  # fmt: skip
def test_one_step_equals_a_straightforward_autograd_reference(
    tmp_path, monkeypatch, step, accumulation, kept, checkpointing, lora, cosine
):
    model = exact_lora() if lora else exact_model()
    expected = copy.deepcopy(model)
    subject = trainer(
        tmp_path,
        model=model,
        max_steps=1,
        probe_step=step,
        safe_cosine=cosine,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
        max_grad_norm=0,
        lr_scheduler_type="constant",
        activation_checkpointing=checkpointing,
    )
    monkeypatch.setattr(subject._prefixes, "count", lambda _: kept)
    seen = {}
    gradient_at = subject._probe_gradient

    def spy(bare, batches, *args, **options):
        seen.setdefault("moved", weights_of(bare))
        seen["batches"] = batches
        return gradient_at(bare, batches, *args, **options)

    monkeypatch.setattr(subject, "_probe_gradient", spy)
    subject.train()
    assert len(seen["batches"]) == accumulation
    options = {"epsilon": 1e-2, "beta": 0.1, "step": step, "rate": 1e-2, "cosine": cosine}
    norm, moved, probe = reference_step(expected, seen["batches"], **options)
    logged = subject.state.log_history[0]
    assert logged["sap/gradient_norm"] == pytest.approx(norm.item(), rel=1e-9)
    for name, value in moved.state_dict().items():
        torch.testing.assert_close(seen["moved"][name], value, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(subject._probes[1], probe, rtol=1e-8, atol=1e-10)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("lora", [False, True])
def test_without_probes_the_gradient_is_turned_and_no_pass_is_added_but_the_contrastive_one(
    tmp_path, monkeypatch, lora
):
    model = exact_lora() if lora else exact_model()
    expected = copy.deepcopy(model)
    options = {"optim": "sgd", "max_grad_norm": 0, "lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    subject = trainer(tmp_path, model=model, max_steps=1, beta=0.0, safe_cosine=0.5, **options)
    seen, losses = [], []
    find, compute = subject._find_probes, subject.compute_loss
    monkeypatch.setattr(subject, "_find_probes", lambda m, batches, n: seen.extend(batches) or find(m, batches, n))
    monkeypatch.setattr(subject, "compute_loss", lambda *a, **k: losses.append(1) or compute(*a, **k))
    subject.train()
    assert len(losses) == 2, "one pass of each micro-batch"
    reference_step(expected, seen, epsilon=1e-2, beta=0.0, step="unit", rate=1e-2, cosine=0.5)
    assert subject.state.log_history[0]["sap/safe_cosine"] < 0.5
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-11)


def test_the_probe_makes_the_useful_loss_rise_in_the_harmful_direction(tmp_path):
    model = exact_model()
    subject = trainer(tmp_path, model=model, probe_step="unit", beta=1e-3)
    batch = subject.data_collator([subject.train_dataset[i] for i in (0, 1)])
    items = (batch["labels"][:, 1:] != -100).sum()
    before = weights_of(model)
    probe = subject._find_probes(model, [batch], items)[1]
    assert_same(before, weights_of(model))
    weights = [p for p in model.parameters() if p.requires_grad]
    direction = subject._harmful_direction(model, weights, 1)
    moved = copy.deepcopy(model)
    for weight, way in zip(moved.parameters(), direction, strict=True):
        weight.data += 1e-3 * way
    rise = [(probed_loss(moved, batch, items, v) - probed_loss(model, batch, items, v)).item() for v in (probe, -probe)]
    flat = probed_loss(moved, batch, items, torch.zeros_like(probe)) - probed_loss(model, batch, items, 0 * probe)
    assert rise[1] < flat.item() < rise[0]


def test_the_harmful_direction_survives_a_model_that_surely_refuses(tmp_path):
    model = byte_model()
    subject = trainer(tmp_path, model=model, temperature=1e-4)
    weights = list(model.parameters())
    one_row = [t for t in TRIPLES if (log_prob(model, t[0], t[2]) - log_prob(model, t[0], t[1])) > 0]
    subject = trainer(tmp_path, model=model, temperature=1e-4, references=one_row[:1], contrastive_batch_size=1)
    direction = subject._harmful_direction(model, weights, 1)
    margin = log_prob(model, one_row[0][0], one_row[0][2]) - log_prob(model, one_row[0][0], one_row[0][1])
    assert functional.logsigmoid(margin / 1e-4) == 0  # the plain loss has no gradient here
    want = torch.cat([-g.flatten() for g in torch.autograd.grad(margin, weights)])
    got = torch.cat([d.flatten() for d in direction])
    torch.testing.assert_close(got, want / want.norm(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("swapped", [False, True])  # so that a later part has the larger coefficients
def test_the_harmful_direction_is_the_same_in_parts(tmp_path, swapped):
    model = exact_model()
    references = [(prompt, safe, unsafe) for prompt, unsafe, safe in TRIPLES] if swapped else TRIPLES
    found = []
    for tokens, parts in ((1000, 1), (2 * 67, 2), (1, 3)):
        subject = trainer(tmp_path, model=model, references=references)
        assert len(subject._contrastive.by_length(range(3), tokens)) == parts
        direction = subject._harmful_direction(model, list(model.parameters()), tokens)
        found.append(torch.cat([part.flatten() for part in direction]))
        assert found[-1].norm() == pytest.approx(1)
        assert subject._metrics["train"]["sap/gradient_norm"][-1] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found[2], found[0], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("accumulation", "checkpointing", "lora"), [(1, False, True), (4, False, False), (4, True, False), (4, True, True)]
)
def test_the_common_prefix_is_computed_once_with_the_same_dropout(
    tmp_path, monkeypatch, accumulation, checkpointing, lora
):
    monkeypatch.setattr(shared_prefix, "SHARED_TOKENS", 80)  # rows have 36 or 37
    adapter = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.2, task_type="CAUSAL_LM") if lora else None
    options = {"activation_checkpointing": checkpointing, "gradient_accumulation_steps": accumulation}
    found, passes = [], []
    for shared in (True, False):
        model = byte_model(attention_dropout=0.1)
        subject = trainer(tmp_path, model=model, peft_config=adapter, per_device_train_batch_size=1, **options)
        assert subject._prefixes._works, "this architecture can resume"
        subject._prefixes._works = shared
        runs = []
        subject.model.get_decoder().layers[1].mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        subject.train()
        found.append(weights_of(subject.model))
        passes.append(len(runs))
    assert passes[1] - passes[0] == 2 * min(accumulation, 2), "in two steps"
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-6, atol=1e-7)


def test_a_loss_of_the_balance_of_experts_needs_whole_passes(tmp_path):
    routed = tiny_model("Qwen3Moe", vocabulary=BYTES, output_router_logits=True, router_aux_loss_coef=0.5)
    plain = byte_model()
    batches = [{"input_ids": torch.ones(1, 9)}]
    assert [trainer(tmp_path, model=model)._prefixes.count(batches) for model in (routed, plain)] == [0, 1]


# --- what it must not disturb ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [{"epsilon": 0.0}, {"beta": 0.0}])
@pytest.mark.parametrize("lora", [False, True])
def test_without_epsilon_or_beta_it_is_plain_sft_bit_for_bit(tmp_path, off, lora):
    adapter = sap_lora() if lora else None
    sft = plain_sft(
        tmp_path / "sft", model=byte_model(attention_dropout=0.1), peft_config=adapter, gradient_accumulation_steps=2
    )
    sft.train()
    sap = trainer(
        tmp_path / "sap",
        model=byte_model(attention_dropout=0.1),
        peft_config=adapter,
        gradient_accumulation_steps=2,
        **off,
    )
    sap.train()
    assert_same(weights_of(sft.model), weights_of(sap.model))


@pytest.mark.parametrize("lora", [False, True])
def test_finding_the_probes_leaves_no_trace(tmp_path, lora):
    subject = trainer(tmp_path, model=byte_model(attention_dropout=0.1), peft_config=sap_lora() if lora else None)
    model = subject.model
    batch = subject.data_collator([subject.train_dataset[0]])
    before, random = weights_of(model), torch.get_rng_state()
    probes = subject._find_probes(model, [batch], torch.tensor(9))
    assert probes[1].norm() > 0
    assert_same(before, weights_of(model))
    assert torch.equal(random, torch.get_rng_state())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert set(subject._metrics["train"]) <= {name for name in subject._metrics["train"] if name.startswith("sap/")}
    assert subject._total_train_tokens == 0


def test_a_failing_pass_restores_the_weights_and_removes_the_hooks(tmp_path, monkeypatch):
    subject = trainer(tmp_path)
    before = weights_of(subject.model)

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(subject, "compute_loss", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        subject.train()
    assert_same(before, weights_of(subject.model))
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_it_learns_otherwise_than_sft_and_evaluates_without_probes(tmp_path):
    rows = training_rows(tiny_rows(), TOKENIZER)
    sft = plain_sft(tmp_path / "sft")
    sft.train()
    sap = trainer(tmp_path / "sap", beta=0.5)
    sap.train()
    names = [
        name for name, value in weights_of(sft.model).items() if not torch.equal(value, sap.model.state_dict()[name])
    ]
    assert names
    fresh = plain_sft(tmp_path / "fresh", model=copy.deepcopy(sap.model))
    assert sap.evaluate(rows)["eval_loss"] == fresh.evaluate(rows)["eval_loss"]


def test_checkpointed_activations_give_the_same_update(tmp_path):
    models, passes = [], []
    for checkpointing in (False, True):
        subject = trainer(tmp_path, activation_checkpointing=checkpointing, peft_config=sap_lora(), max_steps=1)
        runs = []
        subject.model.get_decoder().layers[0].mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        subject.train()
        models.append(weights_of(subject.model))
        passes.append(len(runs))
    assert passes[1] > passes[0], "activations are computed again"
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-5, atol=1e-6)


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "gradient_accumulation_steps": 2}
    whole = trainer(tmp_path / "whole", model=byte_model(attention_dropout=0.1), **options)
    whole.train()
    resumed = trainer(tmp_path / "whole", model=byte_model(attention_dropout=0.1), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2"))
    assert resumed.state.global_step == 4
    assert_same(weights_of(whole.model), weights_of(resumed.model))


def test_bfloat16_computation_trains_float32_weights(tmp_path):
    subject = trainer(tmp_path, bf16=True, peft_config=sap_lora())
    before = weights_of(subject.model)
    subject.train()
    assert subject._margins._in_pairs is True, "rounding is no reason to compute the answers apart"
    changed = [name for name, value in weights_of(subject.model).items() if not torch.equal(value, before[name])]
    assert changed
    assert all("lora" in name and subject.model.state_dict()[name].dtype == torch.float32 for name in changed)


def test_the_cost_is_that_of_the_whole_step_however_its_micro_batches_differ(tmp_path, monkeypatch):
    subject = trainer(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=1)
    prefixes = (1.0, 2.0, 3.0, 5.0)  # of both micro-batches, computed with the probes
    first, second = (0.0, *prefixes, 6.0, 8.0), (10.0, 10.0, 14.0)  # start, after the probes, end of a micro-batch
    times = iter(first + second)
    monkeypatch.setattr(subject, "_now", lambda: next(times))
    subject.train()
    assert subject.state.log_history[0]["sap/cost"] == pytest.approx((8 + 4) / ((1 + 2) + (2 + 4)))


def test_logs_hold_norms_and_cost(tmp_path):
    subject = trainer(tmp_path, probe_step="unit")
    subject.train()
    logged = subject.state.log_history[0]
    assert logged["sap/probe_norm"] == pytest.approx(0.1, rel=1e-5)
    assert logged["sap/cost"] > 1
    assert {"sap/safety_loss", "sap/gradient_norm", "sap/probe_gradient_change", "seconds_per_step"} <= logged.keys()
    assert 10 < logged["peak_memory_mb"] < 100_000


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_broken_loss_stops_before_the_weights_and_names_step_and_checkpoint(tmp_path, monkeypatch):
    subject = trainer(tmp_path, max_steps=4, save_strategy="steps", save_steps=2)
    compute = subject.compute_loss

    def break_third_step(model, inputs, **options):
        loss = compute(model, inputs, **options)
        return loss * float("nan") if subject.state.global_step == 2 else loss

    monkeypatch.setattr(subject, "compute_loss", break_third_step)
    with pytest.raises(TrainingError, match=r"not finite at step 3 .*checkpoint-2"):
        subject.train()
    kept = tmp_path / "checkpoint-2"
    assert (kept / "model.safetensors").exists()
    assert all(torch.isfinite(value).all() for value in weights_of(subject.model).values())


def test_the_guard_also_stops_plain_sft(tmp_path, monkeypatch):
    subject = plain_sft(tmp_path)
    subject.add_callback(FiniteGuard())
    compute = subject.compute_loss
    monkeypatch.setattr(subject, "compute_loss", lambda *a, **k: compute(*a, **k) * float("inf"))
    with pytest.raises(TrainingError, match="at step 1 .* no checkpoint yet"):
        subject.train()


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([("Hurt him", "Sure", "")], "row 0 has no safe answer"),
        ([*TRIPLES, ("Hurt him", "Sure", None)], "row 3 has no safe answer"),
        ([("Hurt him", " ", "No.")], "row 0 has no unsafe answer"),
        ([], "got none"),
        (Dataset.from_list([{"prompt": "a", "unsafe": "b"}]), "no column safe"),
    ],
)
def test_contrastive_rows_without_a_side_are_refused(tmp_path, references, message):
    with pytest.raises(ReferenceSetError, match=message):
        trainer(tmp_path, references=references)


def test_sides_that_answer_different_prompts_are_refused(tmp_path):
    unsafe, safe = ({"prompt": p, "response": "x"} for p in ("one", "two"))
    pair = ReferenceSet(unsafe=(unsafe,), safe=(safe,), labels=("a",), source="test")
    with pytest.raises(ReferenceSetError, match="different prompts"):
        trainer(tmp_path, references=pair)


def test_a_contrastive_prompt_longer_than_the_window_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"row 1: the prompt has \d+ tokens .* contrastive_max_length=64"):
        trainer(tmp_path, references=[TRIPLES[1], ("w" * 99, "Sure.", "No.")], contrastive_max_length=64)


def test_a_model_without_the_lora_targets_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no layer that the LoRA names"):
        trainer(tmp_path, peft_config=LoraConfig(target_modules=["query_key_value"]))


def test_a_frozen_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="no trainable weights"):
        trainer(tmp_path, model=byte_model().requires_grad_(False))


def test_a_step_too_fine_for_the_weights_warns(tmp_path, caplog):
    trainer(tmp_path, model=byte_model(dtype=torch.bfloat16), epsilon=2e-5)
    assert "epsilon=2e-05 is below the resolution" in caplog.text


def test_the_step_of_probes_does_not_matter_without_probes(tmp_path, caplog):
    trainer(tmp_path, model=byte_model(dtype=torch.bfloat16), epsilon=2e-5, beta=0.0, safe_cosine=0.2)
    assert "below the resolution" not in caplog.text


def test_probe_blocks_beyond_the_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="wanted blocks of 0 to 2"):
        trainer(tmp_path, probe_blocks="1-3")


def test_a_missing_trl_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    for name in ("sap", "sap_config"):  # the configuration is imported first
        monkeypatch.delitem(sys.modules, f"larf_curate.training.{name}")
    with pytest.raises(MissingExtraError, match=r'pip install "larf-curate\[train\]"'):
        importlib.import_module("larf_curate.training.sap")
