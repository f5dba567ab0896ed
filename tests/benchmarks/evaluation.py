"""Prompts per second of an evaluation, against `model.generate` one by one, on the same prompts.

    python tests/benchmarks/evaluation.py MODEL [--prompts builtin:harmful] [--limit 48] [--repeats 3] [-o FILE]

Every variant answers the same prompts greedily with up to ``--max-new-tokens`` tokens, the variants in turn; seconds
are those of the processor, which other work disturbs least, and figures medians over the repeats. The texts and the
verdicts of each variant are compared with those one by one. "Static cache" is the batched variant with
``cache_implementation`` of `transformers`, which compiles nothing on a CPU.
"""

import argparse
import json
import random
import time
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from larf_curate.data.prompts import load_prompts
from larf_curate.evaluation.judges import JUDGES
from larf_curate.evaluation.refusal_report import evaluate_refusals
from larf_curate.models.generation import GREEDY, stop_ids
from larf_curate.models.shrinking_batch import left_padded

ONE = "generate, one by one"


def encoded(tokenizer, prompts):
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False) for chat in chats]


def generate(model, tokenizer, prompts, new, batch_size, **options):
    """Answers by `generate` in batches of similar length, which run until their last answer has ended."""
    rows = encoded(tokenizer, prompts)
    order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
    stop = stop_ids(model, tokenizer)
    config = GenerationConfig(max_new_tokens=new, eos_token_id=stop, pad_token_id=stop[0], **GREEDY, **options)
    answers = [""] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids, mask = left_padded([rows[index] for index in chosen], stop[0])
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        for index, text in zip(chosen, texts, strict=True):
            answers[index] = text.strip()
    return answers


def variants(model, tokenizer, prompts, options):
    new, size = options.max_new_tokens, options.batch_size
    judge = JUDGES[options.judge]

    def plain(batch_size, **extra):
        answers = generate(model, tokenizer, prompts, new, batch_size, **extra)
        return answers, judge(prompts, answers)

    def ours(until_decided):
        settings = {"judge": options.judge, "max_new_tokens": new, "batch_size": size, "until_decided": until_decided}
        report = evaluate_refusals(model, prompts, tokenizer=tokenizer, **settings)
        return list(report.answers), list(report.refused)

    return {
        ONE: lambda: plain(1),
        f"generate, batches of {size}": lambda: plain(size),
        f"generate, batches of {size}, static cache": lambda: plain(size, cache_implementation="static"),
        "larf-curate evaluate": lambda: ours(False),
        "larf-curate evaluate --until-decided": lambda: ours(True),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompts", default="builtin:harmful")
    parser.add_argument("--limit", type=int, default=48)
    parser.add_argument("--judge", choices=list(JUDGES), default="phrases")
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without", nargs="*", default=[], help="variants to leave out, by a part of their name")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    prompts = load_prompts(options.prompts, limit=options.limit)
    runs = {
        name: run
        for name, run in variants(model, tokenizer, prompts, options).items()
        if not any(part in name for part in options.without)
    }
    seconds, found = {name: [] for name in runs}, {}
    for _ in range(options.repeats):
        for name in random.sample(list(runs), len(runs)):
            start = time.process_time()
            found[name] = runs[name]()
            seconds[name].append(time.process_time() - start)
            print(f"{name}: {seconds[name][-1]:.1f} s", flush=True)
    print(f"{len(prompts)} prompts, {sum(found[ONE][1])} refused, {torch.get_num_threads()} threads")
    print("| variant | prompts/s | × one by one | texts that are or begin those one by one | verdicts that differ |")
    print("| --- | ---: | ---: | ---: | ---: |")
    rows = []
    for name, values in seconds.items():
        pairs = list(zip(found[name][0], found[ONE][0], strict=True))
        row = {"variant": name, "seconds": values, "prompts_per_second": len(prompts) / median(values)}
        row["times"] = median(seconds[ONE]) / median(values)
        row["same"] = sum(whole.startswith(text) for text, whole in pairs)
        row["differ"] = sum(a != b for a, b in zip(found[name][1], found[ONE][1], strict=True))
        rows.append(row)
        print(f"| {name} | {row['prompts_per_second']:.2f} | {row['times']:.1f} | {row['same']} | {row['differ']} |")
    if options.output:
        options.output.write_text(json.dumps({"prompts": len(prompts), "rows": rows}, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
