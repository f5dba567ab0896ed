"""What a step of SAP costs against a step of SFT, in time and memory, and how fine an epsilon the arithmetic carries.

    python tests/benchmarks/sap.py MODEL [--rows FILE] [--steps 6] [--batch 8] [--length 128]
    python tests/benchmarks/sap.py MODEL --epsilons

The costs: every setting runs in a process of its own; the figures are medians over the steps after the first.
The epsilons: cosine between the probes' gradient change at one epsilon and at 100 times it, in float32 and bfloat16;
near 1 the difference is a derivative, near 0 it is rounding noise.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from statistics import median

import torch
from datasets import Dataset

from larf_curate.data import load_rows
from larf_curate.training.finetune import Recipe, fine_tune

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--rows", help="JSON lines to train on; by default packaged rows made longer")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--epsilons", action="store_true")
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    (measure if options.setting else epsilons if options.epsilons else costs)(options)


if __name__ == "__main__":
    main()
