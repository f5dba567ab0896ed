"""Measures in at most eight minutes what needs a GPU: scoring, attention, FAISS, gradient, steps of training, memory.

    python -m tests.gpu.measure -o gpu.json [--model FOLDER] [--seconds 480] [--sections scoring attention]
    python -m tests.gpu.measure -o gpu.json --tiny

Weights are random and made on the device, in the shapes of Llama-3.1-8B and SmolLM2-135M; ``--model`` names a small
model to use instead of the latter. Nothing is downloaded. Every section runs in a process of its own with a limit of
time, and the JSON file is written after each: one that fails, is stopped or lacks a library does not lose the others,
nor what it had found itself. ``--tiny`` runs all of it with tiny models in seconds, without a GPU on the CPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from larf_curate.files import write_json
from tests.gpu.sections import SECTIONS

NAMES = {section.__name__: section for section in SECTIONS}


def main():
    options = parse()
    if options.section:
        for found in NAMES[options.section](options):
            print(json.dumps(found), flush=True)
        return 0
    if not (options.tiny or options.device.startswith("cuda")):
        sys.exit("needs a GPU: torch.cuda.is_available() is false; --tiny runs on the CPU")
    report = measure(options)
    print(json.dumps(report, indent=1))
    return int(any(found["status"] != "done" for found in report.values()))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--model", help="folder of a small model, such as SmolLM2-135M-Instruct")
    parser.add_argument("--seconds", type=float, default=480, help="for all sections together")
    parser.add_argument("--sections", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this script")
    parser.add_argument("--section", choices=NAMES, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(options):
    """Run the sections one after the other; returns what each found, and writes it as it comes."""
    end, report = time.monotonic() + options.seconds, {}
    for name in options.sections:
        command = [sys.executable, "-m", "tests.gpu.measure", "--section", name, "--device", options.device]
        command += ["--model", options.model] if options.model else []
        command += ["--tiny"] if options.tiny else []
        report[name] = run_section(command, min(SECTIONS[NAMES[name]], end - time.monotonic()))
        write_json(options.output, report)
        print(f"{name}: {report[name]['status']} in {report[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
    return report


def run_section(command, limit):
    """Run a command that prints JSON lines, for at most so many seconds.

    Returns:
        ``status``: ``done``, ``failed`` or ``stopped``; ``seconds``; ``found``, the lines it printed; ``error``, the
        end of what it wrote to stderr unless it is done.
    """
    start = time.monotonic()
    if limit <= 0:
        return {"status": "stopped", "seconds": 0.0, "found": [], "error": "no time was left"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=out, stderr=log, start_new_session=True)
        try:
            status = "failed" if process.wait(timeout=limit) else "done"
        except subprocess.TimeoutExpired:
            status = "stopped"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        log.seek(0)
        lines = [line for line in out if line.startswith("{") and line.endswith("}\n")]  # libraries may print too
        found = [json.loads(line, parse_constant=str) for line in lines]  # NaN, which is no JSON, becomes a text
        result = {"status": status, "seconds": time.monotonic() - start, "found": found}
        return result if status == "done" else {**result, "error": log.read()[-2000:]}


if __name__ == "__main__":
    sys.exit(main())
