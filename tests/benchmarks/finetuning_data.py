"""Write the rows and prompts of the fine-tuning experiments: clean rows, a mix with harmful rows, rows held out.

    python tests/benchmarks/finetuning_data.py --model MODEL --clean alpaca_1000_clean.jsonl \
        --mix alpaca_2500_harmful10.jsonl --harmful directharm4.csv --safe xstest.csv -o FOLDER

``clean.jsonl``: the clean rows of 80 to 140 tokens. ``mix.jsonl``: rows of at most 140 tokens drawn at random, a tenth
of them harmful (column ``is_harmful``). ``held_out.jsonl``: other benign rows of that length. ``harmful.csv`` and
``safe.csv``: prompts drawn at random, of XSTest only the safe ones.
"""

import argparse
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from larf_curate.conversation.training_rows import training_rows
from larf_curate.data.prompts import load_prompts, load_table
from larf_curate.models.source import ModelSource, load_tokenizer

SHORTEST, LONGEST = 80, 140


def lengths(rows: Dataset, tokenizer) -> np.ndarray:
    """Tokens of every row as it is trained on."""
    plain = rows.select_columns(["instruction", "input", "output"])
    return np.array([len(ids) for ids in training_rows(plain, tokenizer, keep_all=True)["input_ids"]])


def draw(rows: Dataset, count: int, seed: int) -> tuple[Dataset, Dataset]:
    """Random rows, and the others."""
    shuffled = rows.shuffle(seed=seed)
    return shuffled.select(range(count)), shuffled.select(range(count, len(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--clean", "--mix", "--harmful", "--safe", "-o"):
        parser.add_argument(name, required=True)
    parser.add_argument("--rows", type=int, default=100, help="rows of the mix")
    parser.add_argument("--prompts", type=int, default=200, help="harmful prompts")
    parser.add_argument("--held-out", type=int, default=40, help="rows and safe prompts")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer = load_tokenizer(ModelSource(model_id=arguments.model))
    folder = Path(arguments.o)
    folder.mkdir(parents=True, exist_ok=True)

    clean = load_table(arguments.clean)
    size = lengths(clean, tokenizer)
    clean.select(np.flatnonzero((size >= SHORTEST) & (size <= LONGEST))).to_json(folder / "clean.jsonl")

    mix = load_table(arguments.mix)
    size, bad = lengths(mix, tokenizer), np.array(mix["is_harmful"])
    benign = mix.select(np.flatnonzero((size <= LONGEST) & ~bad))
    harmful = mix.select(np.flatnonzero((size <= LONGEST) & bad))
    count = arguments.rows // 10
    chosen, rest = draw(benign, arguments.rows - count, arguments.seed)
    concatenate_datasets([chosen, draw(harmful, count, arguments.seed)[0]]).shuffle(seed=arguments.seed).to_json(
        folder / "mix.jsonl"
    )
    rest.select(range(arguments.held_out)).to_json(folder / "held_out.jsonl")
    safe = load_prompts(arguments.safe, where="label=safe")
    for name, prompts, count in (
        ("harmful", load_prompts(arguments.harmful), arguments.prompts),
        ("safe", safe, arguments.held_out),
    ):
        table = Dataset.from_dict({"prompt": prompts})
        draw(table, count, arguments.seed)[0].to_csv(folder / f"{name}.csv")


if __name__ == "__main__":
    main()
