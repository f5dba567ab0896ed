"""Time and agreement of the ways of finding layers, against a naive sweep: reload, scale, generate, prompt by prompt.

    python tests/benchmarks/layers.py --model MODEL --prompts FILE -o FOLDER

Writes ``layers.json``, ``layers.md`` and a plot of each method into FOLDER. The naive sweep and ours take turns on a
random sample of cells; their times, seconds of the processor, which other work disturbs least, are extrapolated to the
whole grid and their refusals compared, prompt by prompt. ``--without-naive`` runs ours alone, in minutes.
The agreement is with a whole sweep: one of ``--methods``, or one that an earlier run of this script wrote
(``--sweep``). ``gradient:32`` is the gradient with ``max_prompts=32``, ``gradient:0`` with all prompts.
"""

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from larf_curate.conversation.refusals import RefusalDetector
from larf_curate.data.prompts import overrejection_prompts
from larf_curate.layers import LayerReport, find_safety_layers
from larf_curate.layers.decoding import decode
from larf_curate.layers.grid import ALPHAS
from larf_curate.layers.methods import NEW_TOKENS, refusal_cell
from larf_curate.layers.replay import Replay
from larf_curate.layers.subject import load_subject
from larf_curate.models.blocks import decoder_blocks, projections
from larf_curate.models.source import ModelSource, count_layers

FASTER = "times faster than our sweep"
METHODS = ["sweep", "forward", "gradient", "gradient:0", "separation"]


def naive_cell(model_id, prompts, block, alpha, refuses, dtype, device):
    """Refusals of every prompt with one block scaled, and the seconds it took."""
    start = time.process_time()
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=dtype).to(device).eval()
    for weight in projections(decoder_blocks(model)[block]).values():
        weight.data = weight.data * alpha
    refused = []
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=32)
        refused.append(refuses(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)))
    return refused, time.process_time() - start


def sample(arguments, prompts, cells):
    """Run cells by the naive loop and by ours in turns: seconds and refusals, and what ours takes before the first."""
    refuses = RefusalDetector.named(arguments.keywords)
    start = time.process_time()
    subject = load_subject(arguments.model, device=arguments.device, dtype=arguments.dtype)
    rows = []
    with subject.frozen():
        replay = Replay(subject, subject.encode_prompts(prompts, new_tokens=NEW_TOKENS))
        decode(subject, list(replay()), refuses, new_tokens=NEW_TOKENS)
        begun = time.process_time() - start
        ours = refusal_cell(subject, replay, refuses)
        for block, alpha in cells:
            start = time.process_time()
            found = ours(block, alpha)
            row = {"block": block, "alpha": alpha, "our seconds": time.process_time() - start, "ours": int(sum(found))}
            rows.append(row if arguments.without_naive else row | compared(arguments, prompts, block, alpha, found))
            print(rows[-1], flush=True)
    return rows, begun


def compared(arguments, prompts, block, alpha, found):
    """The same cell by the naive loop."""
    refuses, dtype = RefusalDetector.named(arguments.keywords), getattr(torch, arguments.dtype)
    naive, seconds = naive_cell(arguments.model, prompts, block, alpha, refuses, dtype, arguments.device)
    differ = sum(a != b for a, b in zip(naive, found, strict=True))
    return {"naive seconds": seconds, "naive": sum(naive), "prompts that differ": differ}


def run_method(arguments, prompts, name, folder):
    method, _, count = name.partition(":")
    checkpoint = folder / f"{method}.cells.jsonl"
    checkpoint.unlink(missing_ok=True)
    start = time.process_time()
    report = find_safety_layers(
        arguments.model,
        method=method,
        prompts=prompts,
        max_prompts=(int(count) or len(prompts)) if count else None,
        alphas=arguments.alphas if method == "sweep" else None,
        keywords=arguments.keywords,
        dtype=arguments.dtype,
        device=arguments.device,
        checkpoint=checkpoint,
    )
    report = replace(report, seconds=time.process_time() - start)
    file = name.replace(":", "-")
    report.save(folder / f"{file}.json")
    report.plot(folder / f"{file}.png")
    print(f"{name}: {report.seconds:.1f} s, layers {report.layers}, broken {report.broken}", flush=True)
    return report


def method_row(name, report, sweep, seconds):
    row = {"method": name, "seconds": report.seconds, "layers": report.layers, "broken": report.broken}
    row[FASTER] = seconds / report.seconds
    if sweep is None or report is sweep:
        return row
    found = sweep.agreement(report)
    agreement = {
        "top 3": found.top3,
        "top 5": found.top5,
        "spearman": found.spearman,
        f"spearman, {found.clear} clear blocks": found.spearman_clear,
    }
    return {**row, **agreement}


def markdown(rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in rows:
        lines.append("| " + " | ".join(cell_text(row.get(column, "")) for column in columns) + " |")
    return "\n".join(lines)


def cell_text(value):
    if isinstance(value, float):
        return f"{value:.2f}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", default="builtin")
    parser.add_argument("--limit", type=int, help="use only the first so many prompts")
    parser.add_argument("--methods", nargs="*", default=METHODS)
    parser.add_argument("--alphas", nargs="+", type=float, default=list(ALPHAS))
    parser.add_argument("--cells", type=int, default=12, help="cells to run by the naive sweep and by ours")
    parser.add_argument("--without-naive", action="store_true", help="run our sweep alone in these cells")
    parser.add_argument("--keywords", choices=["default", "larf"], default="larf")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sweep", type=Path, help="folder of an earlier run whose sweep is taken")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    prompts = overrejection_prompts(arguments.prompts)[: arguments.limit]

    reports = {name: run_method(arguments, prompts, name, arguments.output) for name in arguments.methods}
    sweep = reports.get("sweep") or (LayerReport.load(arguments.sweep / "sweep.json") if arguments.sweep else None)
    blocks = count_layers(ModelSource(model_id=arguments.model))
    grid = [(block, alpha) for block in range(blocks) for alpha in sorted(arguments.alphas)]
    cells, begun = sample(arguments, prompts, random.Random(0).sample(grid, min(arguments.cells, len(grid))))
    naive = sum(cell.get("naive seconds", 0) for cell in cells) / len(cells) * len(grid)
    ours = sum(cell["our seconds"] for cell in cells) / len(cells) * len(grid) + begun
    rows = [
        *(
            [{"method": f"naive sweep, from {len(cells)} cells", "seconds": naive, FASTER: ours / naive}]
            if naive
            else []
        ),
        {"method": f"our sweep, from {len(cells)} cells", "seconds": ours, FASTER: 1.0},
        *(method_row(name, report, sweep, ours) for name, report in reports.items()),
    ]
    about = {
        "model": arguments.model,
        "prompts": len(prompts),
        "cells": len(grid),
        "keywords": arguments.keywords,
        "threads": torch.get_num_threads(),
        "dtype": arguments.dtype,
        "device": arguments.device,
    }
    text = "\n\n".join([markdown(rows), markdown(cells), json.dumps(about)])
    (arguments.output / "layers.md").write_text(text + "\n", encoding="utf-8")
    value = {"about": about, "methods": rows, "cells": cells}
    (arguments.output / "layers.json").write_text(json.dumps(value, indent=2), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
