"""Scores of `LarfScorer` against the paper's formula in the plainest loop: whole model, float32, one row at a time.

python tests/benchmarks/parity.py --model M --unsafe unsafe.jsonl --safe safe.jsonl --data rows.jsonl --layers 9 14
"""

import argparse
import json

import numpy as np
import torch
from datasets import load_dataset
from scipy.stats import spearmanr
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from larf_curate import LarfScorer, ReferenceSet, SafetyProfile
from larf_curate.conversation.schemas import to_messages


def naive_states(model, tokenizer, rows, layers):
    """States at the last token of every row, shape (rows, layers, d); a block's output is one entry further on."""
    states = []
    for row in tqdm(rows, desc="one by one"):
        ids = tokenizer.apply_chat_template(to_messages(row), return_tensors="pt", return_dict=False)
        with torch.inference_mode():
            hidden = model(ids, output_hidden_states=True).hidden_states
        states.append(np.stack([hidden[layer + 1][0, -1].numpy() for layer in layers]))
    return np.stack(states)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "unsafe", "safe", "data"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[9, 14])
    parser.add_argument("--rows", type=int, help="only this many, evenly spread")
    args = parser.parse_args()

    refs = ReferenceSet.from_sides(args.unsafe, args.safe)
    ds = load_dataset("json", data_files=args.data, split="train")
    ds = ds.select(np.linspace(0, len(ds) - 1, args.rows).astype(int)) if args.rows else ds
    profile = SafetyProfile.build(args.model, refs, layers=args.layers, signal="larf", dtype="float32")
    scored = ds.map(LarfScorer(profile), batched=True, load_from_cache_file=False).filter(
        lambda s: s == "ok", input_columns="larf_status"
    )

    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    rows, unsafe, safe = (
        unit(naive_states(model, tokenizer, side, args.layers)) for side in (scored, refs.unsafe, refs.safe)
    )
    want = np.einsum("nld,mld->nlm", rows, unsafe).mean(2) - np.einsum("nld,mld->nlm", rows, safe).mean(2)
    got = np.array(scored["larf_layer_scores"])
    result = {
        "rows": len(scored),
        "layers": args.layers,
        "max_difference": float(np.abs(got - want).max()),
        "spearman": [float(spearmanr(got[:, i], want[:, i]).statistic) for i in range(len(args.layers))],
        "spearman_of_score": float(spearmanr(scored["larf_score"], want.mean(1)).statistic),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
