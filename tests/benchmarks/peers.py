"""Reading hidden states by this package and by other libraries: speed, memory, agreement, and lines that a user writes.

    python -m tests.benchmarks.peers --model MODEL --data FILE --rows 64 --repeats 3 -o FOLDER

Every way of `tests.benchmarks.peer_snippets` reads the same conversations at the same blocks. Every measurement has a
process of its own with the same number of threads, and the repeats take turns. Loading and a warm-up are not timed;
the chat template, tokenizing and reading are. Rows per second are given by the clock and by processor time, which other
work on the machine disturbs less. Memory is the largest resident size of the process, libraries included, and that part
of it which came after the imports of torch and transformers. States are compared with the ``hidden_states`` that the
model returns in float32, one conversation at a time. Lines are those of the snippet's body.

A library that is not installed or fails is in the table with its reason; ``pip install -e ".[cpu,bench]"`` installs all
that run without a GPU. Without ``--data``, packaged rows are read. Writes ``peers.json`` and ``peers.md`` into FOLDER.
"""

import argparse
import ast
import inspect
import json
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.benchmarks import peer_snippets
from tests.benchmarks.memory import peak_rss

WARM_UP = 4
"""Conversations that are read before the clock starts."""
REFERENCE = "reference"
WAYS = {  # names in the table by functions of the snippets
    "ours": "larf_curate",
    "authors_loop": "the LARF authors' loop",
    "plain_map": "`ds.map`, `output_hidden_states`, batches of 32",
    "tuned_loop": "a loop of transformers, tuned by hand",
    "feature_extraction": "transformers' feature-extraction pipeline",
    "nnsight": "nnsight",
    "nnterp": "nnterp",
    "transformer_lens": "TransformerLens",
    "steering_vectors": "steering-vectors",
    "sentence_transformers": "sentence-transformers, last-token pooling",
    "vllm_lens": "vLLM with vllm-lens",
}
PACKAGES = {
    "nnsight": ["nnsight"],
    "nnterp": ["nnterp", "nnsight"],
    "transformer_lens": ["transformer-lens"],
    "steering_vectors": ["steering-vectors"],
    "sentence_transformers": ["sentence-transformers"],
    "vllm_lens": ["vllm-lens", "vllm"],
}
"""Distributions that a way needs beside those of this package."""
NEEDS_GPU = {"vllm_lens"}


def main():
    arguments = parse()
    if arguments.job:
        print(json.dumps(run_job(json.loads(arguments.job))))
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, Path(folder))
    (arguments.output / "peers.json").write_text(json.dumps(report, indent=2))
    (arguments.output / "peers.md").write_text("\n".join(table(report)) + "\n", encoding="utf-8")
    print("\n".join(table(report)))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--data", help="JSON lines; a random sample of its rows is read")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, nargs="+", default=[19, 21, 22], help="blocks, without the model's last")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("-o", "--output", type=Path, default=Path("peers-benchmark"))
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments, folder):
    """All ways in all dtypes, repeat by repeat."""
    if sorted(arguments.layers) != arguments.layers:
        sys.exit("wanted --layers in order: some ways read the deepest alone")
    blocks = AutoConfig.from_pretrained(arguments.model).get_text_config().num_hidden_layers
    if not all(0 <= layer < blocks - 1 for layer in arguments.layers):
        sys.exit(f"wanted --layers from 0 to {blocks - 2}: the last block's state has passed the final norm elsewhere")
    chats = conversations(arguments)
    (folder / "chats.json").write_text(json.dumps(chats))
    settings = {name: getattr(arguments, name) for name in ("model", "layers", "device", "threads")}
    job = {**settings, "folder": str(folder)}
    tokens = in_a_process({**job, "way": REFERENCE, "dtype": "float32"})["tokens"]
    reasons = {way: missing(way, arguments.device) for way in arguments.ways}
    runs = {(dtype, way): [] for dtype in arguments.dtypes for way in arguments.ways if not reasons[way]}
    for repeat in range(arguments.repeats):
        for dtype, way in list(runs):
            found = in_a_process({**job, "way": way, "dtype": dtype})
            print(f"repeat {repeat + 1}, {dtype}, {way}: {found}", file=sys.stderr, flush=True)
            if "failed" in found:
                reasons[way] = f"{dtype}: {found['failed']}"
                del runs[dtype, way]
            else:
                runs[dtype, way].append(found)
    settings |= {"rows": len(chats), "tokens": tokens, "repeats": arguments.repeats}
    settings |= {name: version(name) for name in ("torch", "transformers")}
    return {"settings": settings, "results": summaries(runs, len(chats)), "not_run": not_run(reasons)}


def conversations(arguments):
    """Rows as lists of messages, from which every way starts."""
    from larf_curate.conversation.schemas import to_messages
    from larf_curate.data import load_rows

    if arguments.data:
        rows = [json.loads(line) for line in Path(arguments.data).read_text(encoding="utf-8").splitlines()]
    else:
        rows = load_rows("neutral")
    return [to_messages(row) for row in random.Random(0).sample(rows, min(arguments.rows, len(rows)))]


def missing(way, device):
    """Why a way cannot run here, if so."""
    if way in NEEDS_GPU and not device.startswith("cuda"):
        return "needs a GPU, not run"
    for name in PACKAGES.get(way, []):
        try:
            version(name)
        except PackageNotFoundError:
            return f"{name} is not installed"
    return None


def in_a_process(job):
    """Run a job in a fresh process; one that fails returns the last line of its error."""
    command = [sys.executable, "-m", "tests.benchmarks.peers", "--job", json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        if job["way"] == REFERENCE:
            sys.exit("the model itself does not run")
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def run_job(job):
    """One measurement: seconds, bytes and how far the states are from the model's own."""
    torch.set_num_threads(job["threads"])
    chats = json.loads((Path(job["folder"]) / "chats.json").read_text())
    own = Path(job["folder"]) / "own.npy"
    if job["way"] == REFERENCE:
        states, tokens = own_states(job, chats)
        np.save(own, states)
        return {"tokens": tokens}
    bare = peak_rss()
    start = time.process_time()
    read = getattr(peer_snippets, job["way"])(job["model"], tuple(job["layers"]), job["dtype"], job["device"])
    read(chats[:WARM_UP])
    loading = time.process_time() - start
    start, started = time.process_time(), time.perf_counter()
    states = np.asarray(read(chats), np.float32)
    found = {"cpu_seconds": time.process_time() - start, "seconds": time.perf_counter() - started}
    found |= {"loading_cpu_seconds": loading, "peak_mb": peak_rss() / 1e6, "over_imports_mb": (peak_rss() - bare) / 1e6}
    if job["device"].startswith("cuda"):
        found["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found | agreement(states, np.load(own))


@torch.inference_mode()
def own_states(job, chats):
    """The model's own ``hidden_states`` at the last tokens in float32, shape (n, layers, d), and all tokens' number."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).to(job["device"]).eval()
    states, tokens = [], 0
    for chat in chats:
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=False).to(job["device"])
        hidden = model(ids, output_hidden_states=True).hidden_states
        states.append([hidden[layer + 1][0, -1].cpu().numpy() for layer in job["layers"]])
        tokens += ids.shape[1]
    return np.array(states), tokens


def agreement(states, own):
    """Differences from the model's own states; of the deepest block alone if there are no others.

    Raises:
        ValueError: If a way returned another shape, or states that are not finite.
    """
    own = own if states.shape == own.shape else own[:, -1:]
    if states.shape != own.shape or not np.isfinite(states).all():
        raise ValueError(f"wanted finite states of shape {own.shape}, got {states.shape}")
    lengths = np.linalg.norm(states, axis=-1), np.linalg.norm(own, axis=-1)
    return {
        "blocks": states.shape[1],
        "max_difference": float(np.abs(states - own).max()),
        "relative": float((np.linalg.norm(states - own, axis=-1) / lengths[1]).max()),
        "min_cosine": float(((states * own).sum(-1) / lengths[0] / lengths[1]).min()),
    }


def lines(way):
    """Lines of a snippet's body, without empty ones and comments."""
    source = textwrap.dedent(inspect.getsource(getattr(peer_snippets, way)))
    first = ast.parse(source).body[0].body[0].lineno
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines()[first - 1 :])


def summaries(runs, rows):
    """Medians and ratios by dtype and way; memory is the largest."""
    found = []
    for (dtype, way), each in runs.items():
        entry = {"dtype": dtype, "way": way, "lines": lines(way), "versions": versions(way), "runs": each}
        for clock, key in (("rows_per_s", "seconds"), ("rows_per_cpu_s", "cpu_seconds")):
            entry[clock] = rows / median(run[key] for run in each)
        for key in ("peak_mb", "over_imports_mb", "gpu_peak_mb", "max_difference", "relative"):
            if key in each[0]:
                entry[key] = max(run[key] for run in each)
        entry |= {"min_cosine": min(run["min_cosine"] for run in each), "blocks": each[0]["blocks"]}
        if ours := runs.get((dtype, "ours")):
            for ratio, key in (("ours_times", "seconds"), ("ours_times_cpu", "cpu_seconds")):
                entry[ratio] = median(run[key] for run in each) / median(run[key] for run in ours)
        found.append(entry)
    return found


def versions(way):
    """Versions of the distributions that a way needs, as far as they are installed."""
    found = {}
    for name in PACKAGES.get(way, []):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def not_run(reasons):
    return [
        {"way": way, "reason": reason, "lines": lines(way), "versions": versions(way)}
        for way, reason in reasons.items()
        if reason
    ]


def table(report):
    """The report as Markdown."""
    settings = report["settings"]
    yield f"{settings['rows']} conversations, {settings['tokens']} tokens, blocks {settings['layers']}, "
    yield f"{settings['device']}, {settings['threads']} thread(s), medians of {settings['repeats']}, "
    yield f"torch {settings['torch']}, transformers {settings['transformers']}"
    yield ""
    yield (
        "| dtype | way | rows/s | rows per CPU second | ours × clock | ours × CPU | MB | MB above imports | "
        "blocks | max. difference | relative | lowest cosine | lines |"
    )
    yield f"| --- | --- |{' ---: |' * 11}"
    for entry in report["results"]:
        yield f"| {' | '.join(cells(entry))} |"
    for entry in report["not_run"]:
        yield f"| | {title(entry)} | {entry['reason']} |{' |' * 9} {entry['lines']} |"


def title(entry):
    """Name of a way, with the versions of its distributions."""
    numbers = ", ".join(entry["versions"].values())
    return f"{WAYS[entry['way']]} ({numbers})" if numbers else WAYS[entry["way"]]


def cells(entry):
    ratios = (f"{entry[key]:.2f}" if key in entry else "" for key in ("ours_times", "ours_times_cpu"))
    return [
        *(entry["dtype"], title(entry), f"{entry['rows_per_s']:.1f}", f"{entry['rows_per_cpu_s']:.1f}", *ratios),
        *(f"{entry['peak_mb']:.0f}", f"{entry['over_imports_mb']:.0f}", str(entry["blocks"])),
        *(f"{entry['max_difference']:.1e}", f"{entry['relative']:.1e}", f"{entry['min_cosine']:.6f}"),
        str(entry["lines"]),
    ]


if __name__ == "__main__":
    main()
