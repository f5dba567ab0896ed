"""Speed of scoring against the loop of LARF's authors and against a plain padded ``ds.map``.

    python -m tests.benchmarks.score --model MODEL --data FILE --rows 500 --repeats 3 -o FOLDER

Ways: ``authors`` runs the whole model with all hidden states and the vocabulary projection, one row at a time;
``map`` does so with batches of 32 rows in dataset order, padded; ``ours`` is ``ds.map(LarfScorer(profile))``, with one
shortcut switched off at a time at the first of the layers. Every measurement has a process of its own, and the repeats
take turns. Loading is not timed; rendering, tokenizing and scoring are. All read the last token of a row, so that their
rankings can be compared. The rate of the bare matrix products of a block is measured in the same rounds, on as many
tokens as ours takes at a time and on 4,096; the share of the former that ours reaches counts every token that must be
computed once, and no padding. Memory is the peak over the bare imports, also as a multiple of the weights used.

Writes ``score.json`` and ``score.md`` into FOLDER.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import datasets
import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from larf_curate import LarfScorer, SafetyProfile
from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import to_messages
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.devices import default_batch_tokens, resolve_device
from larf_curate.models.loading import load_reader
from larf_curate.models.prefix_cache import group_by_prefix
from larf_curate.models.source import ModelSource, count_layers
from larf_curate.models.token_trimming import SHORTCUTS
from tests.benchmarks.memory import peak_rss

WARM_UP = 4
"""Rows that run before the clock starts."""
LARGE_BATCH = 4096


def main():
    arguments = parse()
    if arguments.job:
        print(json.dumps(run_job(json.loads(arguments.job))))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    (arguments.output / "score.json").write_text(json.dumps(report, indent=2))
    (arguments.output / "score.md").write_text("\n".join(table(report)) + "\n")
    print("\n".join(table(report)))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--data", help="JSON lines; a random sample of its rows is scored")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", nargs="+", default=["9", "14", "all"], help="deepest layer of each run, or all")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--signal", default="larf")
    parser.add_argument("--device", default=resolve_device())
    parser.add_argument("--batch-tokens", type=int, default=0, help="if not what suits the device")
    parser.add_argument("--threads", type=int, help="threads of torch, if not its own choice")
    parser.add_argument("--only", nargs="+", help="names of the ways to run, as in the table")
    parser.add_argument("-o", "--output", type=Path, default=Path("score-benchmark"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments, folder):
    """All jobs of all dtypes, repeat by repeat."""
    with open(arguments.data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = random.Random(0).sample(rows, min(arguments.rows, len(rows)))
    (folder / "rows.json").write_text(json.dumps(rows))
    for dtype in arguments.dtypes:
        SafetyProfile.build(
            arguments.model, layers="all", signal=arguments.signal, dtype=dtype, device=arguments.device
        ).save_pretrained(folder / dtype)
    work = count_work(arguments, rows)
    settings = {name: getattr(arguments, name) for name in ("model", "device", "batch_tokens", "threads")}
    jobs = [
        {"name": name, "dtype": dtype, "folder": str(folder), **settings, **job}
        for dtype in arguments.dtypes
        for name, job in ways(arguments.layers, arguments.device).items()
        if not arguments.only or name in arguments.only
    ]
    results = {(job["dtype"], job["name"]): [] for job in jobs}
    for repeat in range(arguments.repeats):
        for job in jobs:
            results[job["dtype"], job["name"]].append(in_a_process(job))
            print(f"repeat {repeat + 1}, {job['dtype']}, {job['name']}: {results[job['dtype'], job['name']][-1]}")
    settings |= {"rows": len(rows), "torch": torch.__version__, "signal": arguments.signal, "data": arguments.data}
    return {"settings": settings, "work": work, "results": summaries(results, work, folder)}


def ways(layers, device):
    """Jobs by name: the two to beat, ours for each of the layers, with one shortcut off, and with large batches."""
    jobs = {"matrix products": {"way": "products"}}
    jobs["matrix products, large"] = {"way": "products", "batch_tokens": LARGE_BATCH}
    jobs |= {"authors": {"way": "authors"}, "map": {"way": "map"}}
    jobs |= {f"ours, {layer}": {"way": "ours", "layer": layer, "without": []} for layer in layers}
    for shortcut in sorted(SHORTCUTS):
        jobs[f"ours, {layers[0]}, no {shortcut}"] = {"way": "ours", "layer": layers[0], "without": [shortcut]}
    jobs[f"ours, {layers[0]}, no shortcut"] = {"way": "ours", "layer": layers[0], "without": sorted(SHORTCUTS)}
    if default_batch_tokens(device) != LARGE_BATCH:
        large = {"way": "ours", "layer": layers[0], "without": [], "batch_tokens": LARGE_BATCH}
        jobs[f"ours, {layers[0]}, {LARGE_BATCH} tokens a batch"] = large
    return jobs


def in_a_process(job):
    """Run a job in a fresh process; a benchmark that fails ends with the process's own words."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.score", "--job", json.dumps(job)],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        sys.exit(f"{job['name']} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_job(job):
    """One measurement: seconds, bytes and the scores, which go into a file."""
    datasets.disable_caching()
    datasets.disable_progress_bars()
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    bare = imported(job["model"])
    rows = json.loads((Path(job["folder"]) / "rows.json").read_text())
    if job["way"] == "products":
        return product_rate(job)
    score, weights = {"authors": authors, "map": plain_map, "ours": ours}[job["way"]](job)
    score(rows[:WARM_UP])
    start = time.perf_counter()
    scores = score(rows)
    seconds = time.perf_counter() - start
    np.save(scores_file(job["folder"], job["dtype"], job["name"]), scores)
    over = peak_rss() - bare
    memory = {"imports_mb": bare / 1e6, "over_imports_mb": over / 1e6, "weights_mb": weights / 1e6}
    if job["device"].startswith("cuda"):
        memory["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return {"seconds": seconds, **memory}


def scores_file(folder, dtype, name):
    return Path(folder) / f"{dtype} {name}.npy"


def imported(model):
    """Largest resident size with all that is imported, the model's own code too, and no weights."""
    with torch.device("meta"):
        AutoModel.from_config(AutoConfig.from_pretrained(model))
    return peak_rss()


def whole_model(job):
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=getattr(torch, job["dtype"]))
    return tokenizer, model.to(job["device"]).eval()


def weight_bytes(model):
    """Bytes of a model's weights, shared ones once."""
    return sum(weight.numel() * weight.element_size() for weight in model.parameters())


def text_of(tokenizer, row):
    return tokenizer.apply_chat_template(to_messages(row), tokenize=False)


def references(job):
    """Unsafe and safe reference states at the last token, each of shape (n, layers, d)."""
    states = SafetyProfile.from_pretrained(Path(job["folder"]) / job["dtype"]).states
    return [torch.tensor(states[side]["last"], device=job["device"]) for side in ("unsafe", "safe")]


def difference(states, unsafe, safe):
    """LARF's score of one row at every layer from states of shape (layers, d): mean of cosine differences."""
    near = nn.functional.cosine_similarity(states, unsafe, dim=-1).mean(0)
    return near - nn.functional.cosine_similarity(states, safe, dim=-1).mean(0)


def authors(job):
    """One row at a time."""
    tokenizer, model = whole_model(job)
    unsafe, safe = references(job)

    @torch.no_grad()
    def score(rows):
        scores = []
        for row in rows:
            inputs = tokenizer(text_of(tokenizer, row), return_tensors="pt", add_special_tokens=False)
            output = model(**inputs.to(job["device"]), output_hidden_states=True)
            states = torch.stack([state[0, -1] for state in output.hidden_states[1:]]).float()
            scores.append(difference(states, unsafe, safe).cpu().numpy())
        return np.stack(scores)

    return score, weight_bytes(model)


def plain_map(job):
    """Batches of 32 rows as they come."""
    tokenizer, model = whole_model(job)
    tokenizer.padding_side = "right"
    unsafe, safe = references(job)

    @torch.no_grad()
    def scored(batch):
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        texts = [text_of(tokenizer, row) for row in rows]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(job["device"])
        output = model(**inputs, output_hidden_states=True)
        ends = inputs["attention_mask"].sum(1) - 1
        places = torch.arange(len(rows), device=job["device"])
        states = torch.stack([state[places, ends] for state in output.hidden_states[1:]], dim=1).float()
        return {"scores": [difference(row, unsafe, safe).tolist() for row in states]}

    def score(rows):
        made = datasets.Dataset.from_list(rows)
        return np.array(made.map(scored, batched=True, batch_size=32, remove_columns=made.column_names)["scores"])

    return score, weight_bytes(model)


def ours(job):
    """This package, from rows to columns."""
    profile = SafetyProfile.from_pretrained(Path(job["folder"]) / job["dtype"])
    layers = profile.layers if job["layer"] == "all" else (int(job["layer"]),)
    scorer = LarfScorer(profile.at(layers), device=job["device"], batch_tokens=job["batch_tokens"])
    reader, _ = scorer._load(None)
    reader.shortcuts -= set(job["without"])

    def score(rows):
        return np.array(datasets.Dataset.from_list(rows).map(scorer, batched=True)["larf_layer_scores"])

    return score, weight_bytes(reader.model)


def product_rate(job):
    """Rate of the matrix products of one decoder block on as many tokens as a batch has, for two seconds."""
    dtype = getattr(torch, job["dtype"])
    tokens = job["batch_tokens"] or default_batch_tokens(job["device"])
    layers = linear_layers(job["model"], job["dtype"], job["device"])
    weights = [torch.randn(shape, device=job["device"]).to(dtype) for shape in layers]
    inputs = {w.shape[1]: torch.randn(tokens, w.shape[1], device=job["device"]).to(dtype) for w in weights}
    flops = sum(2 * tokens * w.numel() for w in weights)

    def block():
        for weight in weights:
            nn.functional.linear(inputs[weight.shape[1]], weight)
        if job["device"].startswith("cuda"):
            torch.cuda.synchronize()

    block()
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 2:
        block()
        count += 1
    return {"tokens": tokens, "gflops": flops * count / elapsed / 1e9}


def linear_layers(model, dtype, device):
    """Shapes of the weights of the first block's linear layers."""
    return [tuple(module.weight.shape) for _, module in first_block(model, dtype, device)]


def first_block(model, dtype, device):
    reader = load_reader(ModelSource(model_id=model, dtype=dtype), (0,), device=device)
    block = decoder_blocks(reader.model)[0]
    return [(name, module) for name, module in block.named_modules() if isinstance(module, nn.Linear)]


def count_work(arguments, rows):
    """Tokens of the rows, and floating-point operations of the linear layers that cannot be left out."""
    source = ModelSource(model_id=arguments.model, dtype="float32")
    reader = load_reader(source, (0,), device="cpu")
    found = [item.tokens.ids for item in Renderer(reader.tokenizer, reader.max_length)(rows) if item.tokens]
    unique = [list(ids) for ids in dict.fromkeys(map(tuple, found))]
    groups = group_by_prefix(unique, [len(ids) - 2 for ids in unique])
    needed = sum(map(len, unique)) - sum(length * (len(members) - 1) for length, members in groups)
    sizes = {name: 2 * module.weight.numel() for name, module in first_block(arguments.model, "float32", "cpu")}
    block = sum(sizes.values())
    keys = sum(size for name, size in sizes.items() if name.endswith(("k_proj", "v_proj", "qkv_proj", "key_value")))
    tokens = sum(map(len, found))
    deepest = {layer: depth(arguments.model, layer) for layer in arguments.layers}
    return {
        "rows": len(found),
        "tokens": tokens,
        "tokens_after_dedupe_and_prefix": needed,
        "beginnings": [{"tokens": length, "rows": len(members)} for length, members in groups if length],
        "gflop": {
            layer: (needed * (block * last + keys) + len(unique) * (block - keys)) / 1e9
            for layer, last in deepest.items()
        },
        "gflop_without_shortcuts": {layer: tokens * block * (last + 1) / 1e9 for layer, last in deepest.items()},
    }


def depth(model, layer):
    return count_layers(ModelSource(model_id=model)) - 1 if layer == "all" else int(layer)


def summaries(results, work, folder):
    """Medians, ratios, shares of the matrix products' rate and agreement of the scores, by dtype and name."""
    found = []
    for (dtype, name), runs in results.items():
        if name.startswith("matrix products"):
            rate = median(run["gflops"] for run in runs)
            found.append({"dtype": dtype, "name": name, "tokens": runs[0]["tokens"], "gflops": rate})
            continue
        seconds = median(run["seconds"] for run in runs)
        entry = {"dtype": dtype, "name": name, "seconds": [run["seconds"] for run in runs]}
        entry |= {"rows_per_s": work["rows"] / seconds, "tokens_per_s": work["tokens"] / seconds}
        entry |= {key: max(run[key] for run in runs) for key in runs[0] if key.endswith("_mb")}
        for base in ("authors", "map"):
            if runs_of_base := results.get((dtype, base)):
                entry[f"times_{base}"] = median(run["seconds"] for run in runs_of_base) / seconds
        if name.startswith("ours"):
            layer = name.split(", ")[1]
            products = results.get((dtype, "matrix products"))
            if products:
                rate = median(run["gflops"] for run in products)
                entry["share_of_products"] = work["gflop"][layer] / seconds / rate
                entry["share_without_shortcuts"] = work["gflop_without_shortcuts"][layer] / seconds / rate
            entry["spearman"] = agreement(folder, results, dtype, name)
        found.append(entry)
    return found


def agreement(folder, results, dtype, name):
    """Lowest rank correlation over the layers with the authors' loop and with the first dtype's scores.

    The last layer of ``all`` is left out against the authors' loop: there, its state has passed the final norm.
    """
    scores = np.load(scores_file(folder, dtype, name))
    layer = name.split(", ")[1]
    found = {}
    if (dtype, "authors") in results:
        whole = np.load(scores_file(folder, dtype, "authors"))
        pairs = (
            zip(scores.T[:-1], whole.T[:-1], strict=True) if layer == "all" else [(scores[:, 0], whole[:, int(layer)])]
        )
        found["authors"] = lowest(pairs)
    first = next(iter(results))[0]
    if dtype != first:
        found[first] = lowest(zip(scores.T, np.load(scores_file(folder, first, name)).T, strict=True))
    return found


def lowest(pairs):
    return float(min(spearmanr(got, want).statistic for got, want in pairs))


def table(report):
    """The report as Markdown."""
    settings, work = report["settings"], report["work"]
    yield f"{work['rows']} rows, {work['tokens']} tokens, {settings['model']}, {settings['device']}"
    yield ""
    yield "| dtype | way | rows/s | tokens/s | × authors | × map | share of products | Spearman | MB | × weights |"
    yield f"| --- | --- |{' ---: |' * 8}"
    for entry in report["results"]:
        if "gflops" in entry:
            what = f"matrix products of {entry['tokens']} tokens: {entry['gflops']:.0f} GFLOP/s"
            yield f"| {entry['dtype']} | {what} |{' |' * 8}"
            continue
        cells = [entry["dtype"], entry["name"], f"{entry['rows_per_s']:.1f}", f"{entry['tokens_per_s']:.0f}"]
        cells += [f"{entry[key]:.2f}" if key in entry else "" for key in ("times_authors", "times_map")]
        cells.append(f"{entry['share_of_products']:.0%}" if "share_of_products" in entry else "")
        cells.append(", ".join(f"{value:.5f}" for value in entry.get("spearman", {}).values()))
        cells += [f"{entry['over_imports_mb']:.0f}", f"{entry['over_imports_mb'] / entry['weights_mb']:.2f}"]
        yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
