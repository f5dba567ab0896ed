"""What training keeps of refusals and what it costs in held-out loss: SFT, SAP and a turned gradient.

    python tests/benchmarks/trade_off.py MODEL --data DIR [--seeds 0 1 2] [--settings sft "sap beta=0.05"] -o FILE

DIR is the folder that ``finetuning_data.py`` wrote. A setting is a method and changes of its recipe; with ``+refusals``
after the method, the prompts and refusals that SAP contrasts with are trained on as ordinary rows too. All of it is
computed in bfloat16. FILE gets a line of JSON for every run, with what it found; runs that are in it are not repeated.
A table of all of its runs is printed.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean
from time import process_time

import torch
from datasets import Dataset, concatenate_datasets

from larf_curate.conversation.schemas import to_messages
from larf_curate.data.prompts import load_prompts, load_table
from larf_curate.evaluation.suite import EvaluationSuite
from larf_curate.models.generation import load_model
from larf_curate.training.contrastive import paired_sides
from larf_curate.training.finetune import fine_tune
from larf_curate.training.own_refusals import own_refusals
from larf_curate.training.recipe import Recipe

SETTINGS = ["sft", "sft +refusals", "sap beta=0 safe_cosine=0.2"]
REFUSALS = "+refusals"
COMMON = {"bf16": True, "epsilon": 0.002, "learning_rate": 4e-4, "refusals": "given"}


def recipe_of(setting: str, micro_batch_size: int) -> Recipe:
    method, *changes = setting.replace(REFUSALS, "").split()
    values = (change.split("=") for change in changes)
    return Recipe(
        method=method,
        micro_batch_size=micro_batch_size,
        **COMMON,
        **{name: json.loads(value) for name, value in values},
    )


def refusals_of(model_id: str) -> list[tuple[str, str, str]]:
    """Prompt, unsafe answer and the model's own refusal, as ``refusals="own"`` finds them."""
    model, tokenizer = load_model(model_id)
    unsafe, safe = own_refusals(paired_sides("builtin"), model.to(torch.bfloat16), tokenizer)
    chats = zip(map(to_messages, unsafe), map(to_messages, safe), strict=True)
    return [(one[-2]["content"], one[-1]["content"], other[-1]["content"]) for one, other in chats]


def rows_of(setting: str, rows: Dataset, refusals: list[tuple[str, str, str]]) -> Dataset:
    """The rows to train on."""
    if REFUSALS not in setting:
        return rows
    safe = [{"instruction": prompt, "input": "", "output": refusal} for prompt, _, refusal in refusals]
    return concatenate_datasets([rows, Dataset.from_list(safe, features=rows.features)])


def measure(model, tokenizer, folder: Path, batch_size: int) -> dict[str, float]:
    suite = EvaluationSuite(
        harmful=tuple(load_prompts(folder / "harmful.csv")),
        safe=tuple(load_prompts(folder / "safe.csv")),
        held_out=load_table(folder / "held_out.jsonl"),
        max_new_tokens=32,
        batch_size=batch_size,
    )
    with tempfile.TemporaryDirectory() as answers:
        found = suite(model.eval().to(torch.bfloat16), tokenizer, Path(answers))
    return {name: measured["mean"] for name, measured in found.items()}


def trained(model_id: str, rows: Dataset, recipe: Recipe, seed: int, references) -> tuple:
    """The fine-tuned model, its tokenizer, and what the training took and logged."""
    start = process_time()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        trainer = fine_tune(model_id, rows, output, recipe=recipe, seed=seed, references=references or "builtin")
    logged = [entry["sap/safe_cosine"] for entry in trainer.state.log_history if "sap/safe_cosine" in entry]
    cost = {"seconds": process_time() - start, "safe_cosines": logged}
    return trainer.model.merge_and_unload(), trainer.processing_class, cost


def table(runs: list[dict]) -> None:
    base = runs[0]["harmful"]
    means = {
        setting: {
            name: fmean(r[name] for r in runs if r["setting"] == setting)
            for name in ("harmful", "safe", "held_out_loss")
        }
        for setting in dict.fromkeys(run["setting"] for run in runs)
    }
    sft = means.get("sft")
    print("| | refused, by seed | lost, share of SFT's | safe prompts refused | held-out loss, against SFT's |")
    print("| --- " * 5 + "|")
    for setting, found in means.items():
        seeds = ", ".join(f"{run['harmful']:.1%}" for run in runs if run["setting"] == setting)
        lost = loss = ""
        if sft and setting != "before":
            share = (base - found["harmful"]) / (base - sft["harmful"]) if base != sft["harmful"] else float("nan")
            lost = f"{base - found['harmful']:.1%}, {share:.0%}"
            loss = f", {found['held_out_loss'] / sft['held_out_loss'] - 1:+.1%}"
        print(f"| {setting} | {seeds} | {lost} | {found['safe']:.0%} | {found['held_out_loss']:.3f}{loss} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--eval-batch-size", type=int, default=40)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    runs = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []

    def add(setting: str, seed: int, found: dict) -> None:
        runs.append({"setting": setting, "seed": seed, **found})
        with options.output.open("a") as file:
            file.write(json.dumps(runs[-1]) + "\n")

    if not runs:
        add("before", 0, measure(*load_model(options.model), options.data, options.eval_batch_size))
    rows = load_table(options.data / "mix.jsonl").select_columns(["instruction", "input", "output"])
    references = refusals_of(options.model) if options.settings != ["sft"] else []
    for seed in options.seeds:
        for setting in options.settings:
            if not any((run["setting"], run["seed"]) == (setting, seed) for run in runs):
                recipe = recipe_of(setting, options.micro_batch_size)
                model, tokenizer, cost = trained(
                    options.model, rows_of(setting, rows, references), recipe, seed, references
                )
                add(setting, seed, {**measure(model, tokenizer, options.data, options.eval_batch_size), **cost})
    table(runs)


if __name__ == "__main__":
    main()
