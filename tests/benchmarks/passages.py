"""Whether windows of an answer show one harmful passage in a long harmless one, and what they flag besides.

    python -m tests.benchmarks.passages --model MODEL --layers 16,17,19 --data DATA --cache CACHE [--part tune]

A row's score is the highest `answer_similarity` of the mean states of windows of 32 tokens that overlap by half, as a
z-score on the highest windows of neutral rows, with the number of answer tokens regressed out.

``DATA`` and ``CACHE`` are those of ``refusals.py``, whose answers are needed. A *harmful passage* is the beginning of
an unsafe answer (200 characters) between two copies of a long harmless one; the control has the beginning of another
harmless answer there. Prints the share of rows above the 90th percentile of clean Alpaca rows, AUROC of harmful against
control passages, and Spearman's correlation with the number of answer tokens within clean rows.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from larf_curate.conversation.truncation import Turn
from larf_curate.data.references import load_neutral
from larf_curate.signals.calibration import calibrated
from larf_curate.signals.centred import answer_similarity
from larf_curate.signals.protocol import ReferenceStates
from larf_curate.stats import auroc, rank_correlation
from tests.benchmarks.refusals import OPENINGS, build_sets, cached_profile, chat, request_of

PASSAGE, WINDOW = 200, 32


def windows_of(turn):
    """Windows of an answer, each half a window after the one before; the last one ends where the answer ends."""
    last = max(turn.end - WINDOW + 1, turn.start)
    starts = [*range(turn.start, last, WINDOW // 2), last]
    return [Turn(start, min(start + WINDOW - 1, turn.end)) for start in starts]


def highest(similarity, reader, conversations):
    """Highest similarity and number of answer tokens of conversations of one turn, as states that are calibrated."""
    windows = [windows_of(item.turns[0]) for item in conversations]
    read = [replace(item, turns=tuple(of)) for item, of in zip(conversations, windows, strict=True)]
    values = similarity(reader(read, ("mean",)))
    starts = np.cumsum([0, *(len(of) for of in windows[:-1])])
    found = np.maximum.reduceat(values, starts, axis=0)[:, :, None]
    counts = np.array([item.turns[0].end - item.turns[0].start + 1 for item in conversations], np.float32)
    return {"mean": found, "length": np.broadcast_to(counts[:, None, None], found.shape)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--part", choices=list(OPENINGS), default="tune")
    parser.add_argument("--rows", type=int, default=50, help="rows of a set, and three times as many of Alpaca")
    arguments = parser.parse_args()
    profile = cached_profile(arguments.cache, arguments.model, arguments.layers)
    reader = profile.reader()
    renderer, similarity = reader.renderer(), answer_similarity(profile.references_for())

    def read(rows):
        tokens = [item.tokens for item in renderer(rows)]
        return highest(similarity, reader, [replace(item, turns=item.turns[-1:]) for item in tokens])

    refs = ReferenceStates(unsafe={}, safe={}, neutral=read(load_neutral()))
    score = calibrated(lambda _: lambda states: states["mean"][:, :, 0], refs)
    answers = json.loads((arguments.cache / "answers.json").read_text(encoding="utf-8"))
    sets = build_sets(arguments.data, arguments.part, answers)
    long = [row for row in sets["alpaca"] if len(row["output"]) > 250]
    middle = len(long) // 2
    shown = {
        "clean Alpaca rows": sets["alpaca"][: 3 * arguments.rows],
        "GSM8K": sets["gsm8k"],
        "a harmful passage": sets["one_sentence"],
        "control: a harmless passage": [
            chat(request_of(row), f"{row['output']}\n{other['output'][:PASSAGE]}\n{row['output']}")
            for row, other in zip(long[:middle], long[middle:], strict=False)
        ],
        "harmful rows": sets["harmful"],
        "answered requests": sets["requests_answered"],
    }
    scores, counts = {}, {}
    for name, rows in shown.items():
        found = read(rows if name == "clean Alpaca rows" else rows[: arguments.rows])
        scores[name], counts[name] = score(found).mean(axis=1), found["length"][:, 0, 0]
    print(f"{profile.summary()['model']}, blocks {', '.join(map(str, profile.layers))}, {arguments.part}\n")
    limit = np.quantile(scores["clean Alpaca rows"], 0.9)
    for name, values in scores.items():
        print(f"| {name} | {len(values)} | {np.mean(values > limit):.0%} |")
    apart = auroc(scores["a harmful passage"], scores["control: a harmless passage"])
    follows = (rank_correlation(scores[name], counts[name]) for name in ("clean Alpaca rows", "GSM8K"))
    print(f"\nharmful above control passages {apart:.3f}; length {' / '.join(f'{value:+.2f}' for value in follows)}")


if __name__ == "__main__":
    main()
