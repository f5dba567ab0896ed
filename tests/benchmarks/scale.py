"""Scoring of very many rows by the real command: flat memory, and no row lost or doubled by kills.

    python tests/benchmarks/scale.py --data FILE --rows 200000 --kills 6 -o FOLDER

The rows of FILE are repeated with distinct prompts into several Parquet files, which ``larf-curate score`` scores with
a tiny random Llama made here. In the first half of the rows the whole process group is killed (``kill -9``) at random
moments and the command started again with ``--resume``; the second half runs through. At the end every row must be
there once, in order, with a score, and every file as the manifest says. Memory is that of the process tree without
pages that other processes could share, such as those of the mapped data.

Writes ``scale.json``, ``scale.md`` and ``scale.png`` into FOLDER.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from larf_curate.conversation.messages import EmptyConversationError
from larf_curate.conversation.schemas import to_messages
from larf_curate.files import sha256

COMMAND = [sys.executable, "-m", "larf_curate"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PERIOD = 0.5
"""Seconds between two looks at the processes."""


def main():
    arguments = parse()
    work = arguments.output / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = list(conversations(arguments.data))
    write_data(rows, arguments, work / "data")
    make_model(rows, work / "model")
    profile = ["--layers", "1", "--signal", "larf", "--dtype", "float32", "--max-length", str(arguments.max_length)]
    subprocess.run([*COMMAND, "profile", work / "model", *profile, "-o", work / "profile"], check=True)
    samples, kills = score(arguments, work)
    report = {"settings": {**vars(arguments), "data": arguments.data.name, "output": None}, "kills": kills}
    report |= {"checked": check(work, arguments.rows), "memory": by_tenth(samples, arguments.rows)}
    report |= {"seconds": samples[-1]["seconds"], "growth": growth(samples, arguments.rows), "samples": samples}
    (arguments.output / "scale.json").write_text(json.dumps(report))
    (arguments.output / "scale.md").write_text("\n".join(table(report)) + "\n", encoding="utf-8")
    plot(report, arguments.output / "scale.png")
    print("\n".join(table(report)))
    shutil.rmtree(work)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of conversations")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--num-proc", type=int, default=1)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser.parse_args()


def conversations(path):
    """Messages of the rows that have an answer."""
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(EmptyConversationError):
            yield to_messages(json.loads(line))


def write_data(rows, arguments, folder):
    """Files of distinct rows: number, question and answer."""
    folder.mkdir()
    turns = [[message["content"] for message in row[-2:]] for row in rows]
    per_file = -(-arguments.rows // arguments.files)
    pairs = enumerate(islice(cycle(turns), arguments.rows))
    for file in range(arguments.files):
        part = list(islice(pairs, per_file))
        columns = {"row": [number for number, _ in part], "answer": [turn[-1] for _, turn in part]}
        columns["question"] = [f"{number}. {turn[0]}" for number, turn in part]
        pq.write_table(pa.table(columns), folder / f"part-{file}.parquet")


def make_model(rows, folder):
    """A random Llama of two blocks and width 16, with a byte-level tokenizer trained on some of the rows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([message["content"] for row in rows[:300] for message in row], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **sizes, num_key_value_heads=1)).save_pretrained(folder)


def score(arguments, work):
    """Run the command to its end, killing it on the way; returns samples of memory and the moments of the kills."""
    chance = random.Random(arguments.seed)
    goals = sorted(chance.uniform(0, arguments.rows / 2) for _ in range(arguments.kills))
    samples, kills, start = [], [], time.monotonic()
    finished = Finished(work / "scored")
    for goal in [*goals, None]:
        process = run_score(arguments, work)
        while process.poll() is None:
            time.sleep(PERIOD)
            samples.append({"seconds": time.monotonic() - start, "rows": finished.rows(), **memory(process.pid)})
            if goal is not None and samples[-1]["rows"] >= goal:
                time.sleep(chance.uniform(0, 10))
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                kills.append({"seconds": time.monotonic() - start, "rows": finished.rows()})
                kills[-1]["half_written"] = len(list((work / "scored").glob(".*.tmp")))
                break
        else:
            if process.returncode:
                sys.exit(f"score failed:\n{(work / 'log').read_text()[-2000:]}")
            break
    return samples, kills


def run_score(arguments, work):
    command = [*COMMAND, "score", work / "data", "--profile", work / "profile", "-o", work / "scored", "--resume"]
    with (work / "log").open("w") as log:
        options = ["--num-proc", str(arguments.num_proc), "--device", "cpu"]
        return subprocess.Popen([*command, *options], stdout=log, stderr=log, start_new_session=True)


class Finished:
    """Rows in the files that are whole."""

    def __init__(self, folder):
        self.folder = folder
        self.counts = {}

    def rows(self):
        for path in self.folder.glob("*.parquet"):
            if path not in self.counts:
                self.counts[path] = pq.read_metadata(path).num_rows
        return sum(self.counts.values())


def memory(pid):
    """Megabytes of a process and its children: private pages, and all that are resident."""
    private = resident = 0
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            info = process.memory_info()
            resident += info.rss
            private += info.rss - info.shared
    except psutil.NoSuchProcess:
        pass
    return {"private_mb": private / 1e6, "resident_mb": resident / 1e6}


def check(work, rows):
    """Every row once, in order and scored; every file as the manifest says; nothing else."""
    out = work / "scored"
    manifest = json.loads((out / "manifest.json").read_text())
    names = [shard["file"] for shard in manifest["shards"]]
    assert {path.name for path in out.iterdir()} == {"plan.json", "manifest.json", *names}
    assert all(sha256(out / shard["file"]) == shard["sha256"] for shard in manifest["shards"])
    got = pa.concat_tables(pq.read_table(out / name, columns=["row", "larf_score"]) for name in names)
    assert got["row"].to_pylist() == list(range(rows))
    assert got["larf_score"].null_count == 0
    return {"rows": len(got), "files": len(names), "status": manifest["status"]}


def steady(samples):
    """Samples taken while rows are scored: the first seconds of a process load its libraries and the data."""
    return [sample for sample in samples if sample["rows"]]


def by_tenth(samples, rows):
    """Median and largest memory in every tenth of the rows."""
    found = []
    for tenth in range(10):
        part = [s["private_mb"] for s in steady(samples) if tenth <= 10 * s["rows"] / rows < tenth + 1]
        if part:
            found.append({"from": tenth * rows // 10, "median_mb": median(part), "largest_mb": max(part)})
    return found


def growth(samples, rows):
    """Median memory in the last fifth of the rows against that from 50 to 70 %, both of one process."""
    sides = ((0.5, 0.7), (0.8, 1.0))
    middle, last = (median(s["private_mb"] for s in samples if low <= s["rows"] / rows < high) for low, high in sides)
    return last / middle


def table(report):
    settings, checked = report["settings"], report["checked"]
    yield f"{checked['rows']:,} rows in {settings['files']} files, {len(report['kills'])} kills, "
    yield f"{report['seconds']:.0f} s, {settings['num_proc']} process(es); every row once and in order in "
    yield f"{checked['files']} files, {checked['status']}"
    yield ""
    yield "| from row | median MB | largest MB |"
    yield "| ---: | ---: | ---: |"
    for part in report["memory"]:
        yield f"| {part['from']:,} | {part['median_mb']:.0f} | {part['largest_mb']:.0f} |"
    yield ""
    yield f"Last fifth of the rows against 50 to 70 %: {report['growth']:.3f}"


def plot(report, path):
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    seconds = [sample["seconds"] for sample in report["samples"]]
    axes.plot(seconds, [sample["private_mb"] for sample in report["samples"]], color="tab:blue")
    axes.set(xlabel="seconds", ylabel="MB, process tree", ylim=(0, None), title="Memory while rows are scored")
    for kill in report["kills"]:
        axes.axvline(kill["seconds"], color="tab:red", linestyle=":")
    right = axes.twinx()
    right.plot(seconds, [sample["rows"] for sample in report["samples"]], color="tab:gray")
    right.set(ylabel="rows in whole files", ylim=(0, None))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
