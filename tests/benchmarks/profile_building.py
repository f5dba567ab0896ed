"""Time of building a profile: named layers against ``auto``, and built again from the cache.

    python tests/benchmarks/profile_building.py MODEL [--dtype float32] [--repeats 3] [--layers 17,18,19] [-o FILE]

Every build runs in a process of its own, in turn, with an empty cache, or with that of the build with ``auto`` before
it for "another signal", "other references" (the second half of the built-in ones instead of the first) and "20 neutral
rows more". "All references" are the built-in ones, as by default; the other builds have half of them. Seconds are those
of the processor without imports, which other work disturbs least; figures are medians over the repeats. Rows are those
that the model has read.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

COLD = ("named", "auto")
DEFAULTS = ("all references, named", "all references, auto")
WARM = ("again", "another signal", "other references", "20 neutral rows more")


def measure(options):
    """Build one profile and print its figures as JSON."""
    from larf_curate.data import load_rows
    from larf_curate.data.references import ReferenceSet
    from larf_curate.models import source
    from larf_curate.models.hidden_states import StateReader
    from larf_curate.profile import SafetyProfile

    read, loads, original, load = [], [], StateReader._read_unique, source._load

    def count(self, conversations, *args):
        read.append(len(conversations))
        return original(self, conversations, *args)

    def noted(kind, *args, **given):
        loads.extend([kind.__name__] if "Model" in kind.__name__ else [])
        return load(kind, *args, **given)

    StateReader._read_unique, source._load = count, noted
    whole = ReferenceSet.load("builtin")
    half = len(whole.unsafe) // 2
    part = slice(half, None) if options.setting == "other references" else slice(0, half)
    named = [int(layer) for layer in options.layers.split(",")]
    changes = {
        "named": {"layers": named},
        DEFAULTS[0]: {"layers": named},
        "another signal": {"signal": "larf"},
        "20 neutral rows more": {"neutral": list(load_rows("neutral")) + more(20)},
    }
    references = ReferenceSet(
        unsafe=whole.unsafe[part], safe=whole.safe[part], labels=whole.labels[part], source="half of the built-in ones"
    )
    if options.setting in DEFAULTS:
        references = whole
    start = time.process_time()
    built = SafetyProfile.build(
        options.model, references, dtype=options.dtype, device="cpu", **changes.get(options.setting, {})
    )
    figures = {"seconds": time.process_time() - start, "rows": sum(read), "loads": len(loads)}
    print(json.dumps({**figures, "layers": built.layers, "by": built.choice["by"], "digest": built.digest}))


def more(count):
    return [{"prompt": f"What is {n} plus {n}?", "response": f"It is {2 * n}, as {n} twice."} for n in range(count)]


def run(options, setting, home):
    given = ["--setting", setting, "--dtype", options.dtype, "--layers", options.layers]
    command = [sys.executable, __file__, options.model, *given]
    done = subprocess.run(command, env={**os.environ, "LARF_CURATE_HOME": home}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures = json.loads(done.stdout.splitlines()[-1])
    print(setting, figures, flush=True)
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layers", default="17,18,19")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--setting", choices=[*COLD, *WARM, *DEFAULTS], help=argparse.SUPPRESS)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.setting:
        measure(options)
        return
    found = {setting: [] for setting in (*COLD, *WARM, *DEFAULTS)}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as home:
            found["named"].append(run(options, "named", empty))
            for setting in ("auto", *WARM):
                found[setting].append(run(options, setting, home))
        for setting in DEFAULTS:
            with tempfile.TemporaryDirectory() as empty:
                found[setting].append(run(options, setting, empty))
    assert all(again["digest"] == first["digest"] for again, first in zip(found["again"], found["auto"], strict=True))
    base = {name: median(each["seconds"] for each in found[name]) for name in ("named", DEFAULTS[0])}
    print("| build | seconds | × named layers | rows read | loads of the model |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for setting, runs in found.items():
        seconds = median(each["seconds"] for each in runs)
        ratio = seconds / base[DEFAULTS[0] if setting in DEFAULTS else "named"]
        print(f"| {setting} | {seconds:.1f} | {ratio:.2f} | {runs[-1]['rows']} | {runs[-1]['loads']} |")
    if options.output:
        options.output.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
