"""What a step of SAP costs against a step of SFT, in time and memory, and how fine an epsilon the arithmetic carries.

    python tests/benchmarks/sap.py MODEL [--rows FILE] [--steps 6] [--batch 8] [--length 128]
    python tests/benchmarks/sap.py MODEL --epsilons
    python tests/benchmarks/sap.py MODEL --probes [--rows FILE] [--after 6] [--learning-rate 4e-4]

The costs: every setting runs in a process of its own; the figures are medians over the steps after the first.
The epsilons: cosine between the probes' gradient change at one epsilon and at 100 times it, in float32 and bfloat16;
near 1 the difference is a derivative, near 0 it is rounding noise.
The probes: after some steps of SFT, what several probes do to the gradient that the next step follows: its cosine to
the harmful direction (the larger, the more the step turns away from harm), its cosine to SFT's gradient, and the loss
with the probe in place.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from statistics import median

import torch
from datasets import Dataset

from larf_curate.conversation.training_rows import training_rows
from larf_curate.data import load_rows
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.source import ModelSource, load_tokenizer
from larf_curate.training.finetune import fine_tune
from larf_curate.training.probes import added_probes, global_norm, probe_blocks, shifted_weights
from larf_curate.training.recipe import Recipe
from larf_curate.training.sap import SapTrainer
from larf_curate.training.sap_config import SapConfig, sap_lora

SETTINGS = {
    "sft": {"method": "sft"},
    "sap, 2 contrastive rows": {"method": "sap", "contrastive_batch_size": 2},
    "sap, 8 contrastive rows": {"method": "sap", "contrastive_batch_size": 8},
    "sap, 8 rows, full weights": {"method": "sap", "contrastive_batch_size": 8, "lora_rank": 0},
    "sft, full weights": {"method": "sft", "lora_rank": 0},
}


def rows(path: str | None, count: int, length: int) -> Dataset:
    if path:
        table = Dataset.from_json(path)
        return table.select(range(min(count, len(table))))
    found = [{"instruction": r["instruction"], "output": f"{r['output']} " * 40} for r in load_rows("neutral")]
    return Dataset.from_list([found[i % len(found)] for i in range(count)])


def measure(options: argparse.Namespace) -> None:
    recipe = Recipe(
        **SETTINGS[options.setting],
        epochs=1,
        batch_size=options.batch,
        micro_batch_size=options.batch,
        max_length=options.length,
    )
    table = rows(options.rows, options.steps * options.batch, options.length)
    with tempfile.TemporaryDirectory() as folder:
        trainer = fine_tune(options.model, table, folder, recipe=recipe)
    logged = [entry for entry in trainer.state.log_history if "seconds_per_step" in entry]
    print(json.dumps({
        "seconds": median(entry["seconds_per_step"] for entry in logged[1:]),
        "memory": logged[-1]["peak_memory_mb"],
        "cost": median(entry.get("sap/cost", 1.0) for entry in logged[1:]),
    }))  # fmt: skip


def costs(options: argparse.Namespace) -> None:
    print(f"{'setting':28} {'s a step':>9} {'MB':>7} {'against its own plain part':>27}")
    for setting in SETTINGS:
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--setting", setting],
                              capture_output=True, text=True, check=True)  # fmt: skip
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"{setting:28} {found['seconds']:9.2f} {found['memory']:7.0f} {found['cost']:27.2f}", flush=True)


def epsilons(options: argparse.Namespace) -> None:
    for dtype in ("float32", "bfloat16"):
        changes = {}
        for epsilon in (2e-7, 2e-6, 2e-5, 2e-4, 2e-3, 2e-2):
            recipe = Recipe(method="sap", epochs=1, batch_size=4, micro_batch_size=4, max_length=options.length,
                            epsilon=epsilon, probe_step="unit", bf16=dtype == "bfloat16")  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                trainer = fine_tune(options.model, rows(options.rows, 4, options.length), folder, recipe=recipe)
            changes[epsilon] = torch.cat(list(trainer._probes.values()))
        found = list(changes.items())
        for (epsilon, one), (other, two) in zip(found, found[2:], strict=False):
            cosine = torch.nn.functional.cosine_similarity(one, two, dim=0).item()
            print(f"{dtype:9} epsilon {epsilon:.0e} against {other:.0e}: cosine {cosine:6.3f}", flush=True)


PROBES = (("auto", 2e-5), ("auto", 2e-2), ("0-9", 2e-5), ("20-28", 2e-5), ("14", 2e-5))
STEPS = (("sign", 0.01), ("sign", 0.05), ("sign", 0.2), ("unit", 5.0))


class Survey(SapTrainer):
    """Plain SFT until a step, then a table of what probes would do there."""

    after = 0

    def _find_probes(self, model, batches, items):
        if self.state.global_step < self.after:
            return {}
        bare = self.accelerator.unwrap_model(model)
        bare.train()
        weights = [weight for weight in bare.parameters() if weight.requires_grad]
        direction = self._harmful_direction(bare, weights, max(batch["input_ids"].numel() for batch in batches))
        loss, plain = self._gradient(bare, batches, items, weights, {})
        self._line("no probe", "", "", loss, plain, direction, plain)
        for spec, epsilon in PROBES:
            blocks = decoder_blocks(self.model)
            self._blocks = {number: blocks[number] for number in probe_blocks(spec, len(blocks))}
            with shifted_weights(weights, direction, epsilon * global_norm(weights)):
                there = self._probe_gradient(bare, batches, items, weights)
            here = self._probe_gradient(bare, batches, items, weights)
            change = [a - b for a, b in zip(there, here, strict=True)]
            for self.args.probe_step, self.args.beta in STEPS:
                probes = dict(zip(self._blocks, self._step(change), strict=True))
                loss, gradient = self._gradient(bare, batches, items, weights, probes)
                step = f"{self.args.probe_step} {self.args.beta:g}"
                self._line(spec, f"{epsilon:.0e}", step, loss, gradient, direction, plain)
        self.control.should_training_stop = True
        return {}

    def _gradient(self, model, batches, items, weights, probes):
        """The useful loss and its gradient with probes in place."""
        total, losses = [torch.zeros_like(weight) for weight in weights], 0.0
        for batch in batches:
            with self._metrics_unchanged(), added_probes(self._blocks, probes):
                loss = self.compute_loss(model, self._prepare_inputs(dict(batch)), num_items_in_batch=items)
            losses += float(loss.detach())
            total = [t + g for t, g in zip(total, torch.autograd.grad(loss, weights), strict=True)]
        return losses, total

    def _line(self, blocks, epsilon, step, loss, gradient, direction, plain):
        flat = [torch.cat([part.flatten() for part in parts]) for parts in (gradient, direction, plain)]
        harm, same = (torch.cosine_similarity(flat[0], other, dim=0).item() for other in flat[1:])
        print(f"| {blocks} | {epsilon} | {step} | {loss:.2f} | {harm:+.3f} | {same:.2f} |", flush=True)


def survey(options: argparse.Namespace) -> None:
    tokenizer = load_tokenizer(ModelSource(model_id=options.model))
    table = training_rows(rows(options.rows, 100, options.length), tokenizer, max_length=1024)
    lora = sap_lora()
    lora.target_modules, lora.lora_dropout, lora.lora_alpha = set(Recipe().lora_targets), 0.0, 16
    print("| blocks | epsilon | step | loss | cosine to harm | cosine to SFT's gradient |\n" + "| --- " * 6 + "|")
    with tempfile.TemporaryDirectory() as folder:
        args = SapConfig(folder, per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to="none",
                         learning_rate=options.learning_rate, warmup_steps=0.1, num_train_epochs=1, save_strategy="no",
                         max_length=1024, model_init_kwargs={"dtype": "float32"}, activation_checkpointing=False,
                         dataloader_pin_memory=False, refusals="own")  # fmt: skip
        trainer = Survey(options.model, args, references="builtin", train_dataset=table, peft_config=lora,
                         processing_class=tokenizer)  # fmt: skip
        trainer.after = options.after
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", help="JSON lines to train on; by default packaged rows made longer")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--epsilons", action="store_true")
    parser.add_argument("--probes", action="store_true")
    parser.add_argument("--after", type=int, default=6, help="steps of SFT before the probes are tried")
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    (measure if options.setting else epsilons if options.epsilons else survey if options.probes else costs)(options)


if __name__ == "__main__":
    main()
