"""Whether a model in bfloat16 ranks rows as it does in float32, for every signal.

    python tests/benchmarks/precision.py --model MODEL --layers 16,17,19 --data ROWS.jsonl --rows 200 -o FILE.md

Two profiles of the same blocks are built, one in each dtype, and the same rows are scored with both. Writes Spearman's
correlation of their scores over the neutral rows (as ``diagnose`` does), over the rows and over those of them whose
column ``is_harmful`` is false. The last columns say where differences arise: a profile in float32 that scores states
in bfloat16; a profile in bfloat16 that scores states in float32; and a profile in float32 that scores its own states
rounded to bfloat16, which is what storing a state costs, without the arithmetic of the model before it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from larf_curate.conversation.chat_template import Renderer
from larf_curate.profile import SafetyProfile
from larf_curate.signals import AXES, DEFAULT_SIGNAL
from larf_curate.states import POSITIONS
from larf_curate.stats import rank_correlation

LOW, FULL = "bfloat16", "float32"


def read(profile, rows):
    """States of each row's last turn."""
    reader = profile.reader()
    items = Renderer(reader.tokenizer, reader.max_length)(rows)
    return reader([replace(item.tokens, turns=item.tokens.turns[-1:]) for item in items], POSITIONS)


def rounded(states):
    values = {name: torch.from_numpy(value).to(torch.bfloat16).float().numpy() for name, value in states.items()}
    return values | {"length": states["length"]}


def agreement(profiles, states, signal, clean):
    """One line of the table."""

    def scores(fitted_in, read_in, values=states):
        return profiles[fitted_in].fit(signal)(values[read_in]).mean(axis=1)

    neutral = {dtype: profile.references_for(signal).neutral for dtype, profile in profiles.items()}
    full = scores(FULL, FULL)
    yield rank_correlation(scores(LOW, LOW, neutral), scores(FULL, FULL, neutral))
    yield rank_correlation(scores(LOW, LOW), full)
    yield rank_correlation(scores(LOW, LOW)[clean], full[clean])
    yield rank_correlation(scores(FULL, LOW), full)
    yield rank_correlation(scores(LOW, FULL), full)
    yield rank_correlation(scores(FULL, FULL, {FULL: rounded(states[FULL])}), full)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--signals", default=",".join((DEFAULT_SIGNAL, *AXES, "larf")))
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = arguments.data.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[: arguments.rows]]
    clean = np.array([not row.get("is_harmful") for row in rows])
    profiles = {
        dtype: SafetyProfile.build(arguments.model, layers=arguments.layers, dtype=dtype) for dtype in (LOW, FULL)
    }
    states = {dtype: read(profile, rows) for dtype, profile in profiles.items()}
    shown = ", ".join(map(str, arguments.layers))
    lines = [
        f"{profiles[FULL].summary()['model']}, blocks {shown}, {len(rows)} rows, {int((~clean).sum())} of them harmful",
        "",
        "| signal | neutral rows | rows | clean rows | states alone | profile alone | states rounded |",
        "| --- |" + " --- |" * 6,
    ]
    for signal in arguments.signals.split(","):
        cells = (f"{value:.4f}" for value in agreement(profiles, states, signal, clean))
        lines.append(f"| `{signal}` | {' | '.join(cells)} |")
    text = "\n".join(lines)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
