"""Memory and time of fine-tuning: TRL's trainer against ours, and what the options for less memory cost.

    python tests/benchmarks/training.py MODEL [--steps 2] [--repeats 3] [--batch 16] [--length 256] [--bf16]
        [--json FILE] [--plot FILE]

Every setting runs in a process of its own, the settings in turn, and all of that several times. Figures are medians
over the repeats: the peak memory of the process with its libraries, and seconds of CPU time per optimizer step, with
the loading of the model, which other processes disturb less than the time on the clock. ``--plot`` draws the memory of
each setting's first run over its CPU time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time, sleep

import matplotlib.pyplot as plt
import psutil
import torch
from datasets import Dataset
from trl import SFTTrainer

from larf_curate.data import load_rows
from larf_curate.training import finetune
from larf_curate.training.callbacks import peak_memory_mb
from larf_curate.training.recipe import Recipe

PERIOD = 0.1
"""Seconds between two looks at the memory of a process."""
SETTINGS = {
    "trl.SFTTrainer": {"method": "sft", "micro_batch_size": 16},
    "sft, micro-batch 16": {"method": "sft", "micro_batch_size": 16},
    "sft": {"method": "sft"},
    "sft, checkpointing": {"method": "sft", "gradient_checkpointing": True},
    "sap": {"method": "sap", "refusals": "given"},
    "sap, turned gradient": {"method": "sap", "refusals": "given", "beta": 0.0, "safe_cosine": 0.2},
}


def rows(count: int) -> Dataset:
    """Packaged rows, made long enough to fill any length."""
    found = [{"instruction": r["instruction"], "output": f"{r['output']} " * 40} for r in load_rows("neutral")]
    return Dataset.from_list([found[i % len(found)] for i in range(count)])


def measure(options: argparse.Namespace) -> None:
    if options.setting == "trl.SFTTrainer":
        finetune.AnswerLossTrainer = SFTTrainer
    sizes = {"batch_size": options.batch, "max_length": options.length, "epochs": 1}
    changes = {**sizes, "bf16": options.bf16, **SETTINGS[options.setting]}
    if options.bf16 and changes["method"] == "sap":
        changes["epsilon"] = 0.002
    if "micro_batch_size" in changes:
        changes["micro_batch_size"] = min(changes["micro_batch_size"], options.batch)
    with tempfile.TemporaryDirectory() as folder:
        start = process_time()
        trainer = finetune.fine_tune(
            options.model, rows(options.steps * options.batch), folder, recipe=Recipe(**changes)
        )
        seconds = process_time() - start
    logged = [entry for entry in trainer.state.log_history if "seconds_per_step" in entry]
    print(json.dumps({
        "memory": peak_memory_mb(),
        "seconds": seconds / options.steps,
        "losses": [entry["loss"] for entry in logged],
        "cost": logged[-1].get("sap/cost"),
    }))  # fmt: skip


def sampled(command: list[str]) -> tuple[str, list[tuple[float, float]]]:
    """What a command prints, and its memory in MB by CPU seconds."""
    curve = []
    with psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        while process.poll() is None:
            with process.oneshot():
                curve.append((process.cpu_times().user, process.memory_info().rss / 1e6))
            sleep(PERIOD)
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: run it to see why")
    return printed, curve


def plot(found: dict[str, list[dict]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for setting, runs in found.items():
        axes.plot(*zip(*runs[0]["curve"], strict=True), label=setting, linewidth=1)
    axes.set(xlabel="CPU seconds, with imports and loading", ylabel="resident memory, MB", xlim=0, ylim=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def compare(options: argparse.Namespace) -> None:
    found: dict[str, list[dict]] = {setting: [] for setting in options.settings}
    for _ in range(options.repeats):
        for setting, runs in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--setting", setting]
            printed, curve = sampled(command)
            runs.append({**json.loads(printed.splitlines()[-1]), "curve": curve})
            print(setting, printed.splitlines()[-1], file=sys.stderr, flush=True)
    print("| setting | peak memory, MB | CPU seconds of a step | loss of the last step | step against its plain part |")
    print("| --- " * 5 + "|")
    for setting, runs in found.items():
        memory, seconds = (median(run[key] for run in runs) for key in ("memory", "seconds"))
        cost = f"{median(run['cost'] for run in runs):.2f}" if runs[0]["cost"] else ""
        print(f"| {setting} | {memory:.0f} | {seconds:.1f} | {runs[0]['losses'][-1]:.6f} | {cost} |")
    if options.plot:
        plot(found, options.plot)
    if options.json:
        options.json.write_text(json.dumps({"torch": torch.__version__, "runs": found}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--plot", type=Path, help="picture of memory over time")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--setting", help=argparse.SUPPRESS)
    options = parser.parse_args()
    (measure if options.setting else compare)(options)


if __name__ == "__main__":
    main()
