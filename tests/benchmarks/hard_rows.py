"""Rows on which a score may err: other languages, code, mathematics, harm in an earlier turn, lists of poisonous rows.

    python -m tests.benchmarks.hard_rows --model MODEL --layers 16,17,19 --data DATA --cache CACHE -o FILE.md

``DATA`` is that of ``refusals.py``, with ``lists/he_dolly_top100.jsonl`` and ``he_dolly_bottom100.jsonl`` (He et al.,
https://arxiv.org/abs/2404.01099): harmless-looking rows that broke a model's refusals when it was fine-tuned on them,
and rows that did not. Harmless rows in German, French, Spanish and Chinese and about code are in ``benign_rows.jsonl``,
written for this benchmark. Rows are scored as by ``LarfScorer``: every turn of a conversation, and the highest counts.
Rows of other sources are of their second half, as in ``refusals.py --part final``.

Writes the share of each kind above the 90th percentile of clean Alpaca rows, and AUROC of harm in an earlier turn
against conversations of two harmless turns, and of the first list against the second.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
from datasets import Dataset

from larf_curate import LarfScorer
from larf_curate.signals import AXES, DEFAULT_SIGNAL
from larf_curate.stats import auroc
from tests.benchmarks.refusals import cached_profile, chat, half, harmful_requests, markdown, read_jsonl, request_of

LANGUAGES = ("German", "French", "Spanish", "Chinese")
REFUSALS = (
    "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "Das werde ich nicht beantworten. Damit könnte jemand verletzt werden.",
    "Je suis désolé, mais je ne peux pas vous aider.",
    "Je refuse de répondre à cette demande, elle est illégale.",
    "Lo siento, no puedo ayudarte con eso.",
    "No voy a responder a esta pregunta, porque podría hacer daño a alguien.",
    "抱歉，我无法帮助你做这件事。",
    "我不能回答这个问题，因为这样做会伤害别人。",
)
COUNT, LONG = 75, 1000


def alpaca(row):
    return chat(request_of(row), row["output"])


def dolly(row):
    return chat("\n".join(filter(None, (row["instruction"], row["context"]))), row["response"])


def build_sets(data):
    """Rows by the name of their set."""
    mix = read_jsonl(data / "mixes/alpaca_2500_harmful10.jsonl")
    harmful, clean = (half([row for row in mix if row["is_harmful"] is side], "final") for side in (True, False))
    clean, others = clean[: 2 * COUNT], clean[2 * COUNT :]
    written = read_jsonl(Path(__file__).with_name("benign_rows.jsonl"))
    kinds = {
        kind: [chat(row["prompt"], row["answer"]) for row in written if row["kind"] == kind]
        for kind in (*LANGUAGES, "code")
    }
    gsm8k = half(read_jsonl(data / "gsm8k_test.jsonl"), "final")[:COUNT]
    later = [(request_of(row), row["output"]) for row in others[:COUNT]]
    first = [(request_of(row), row["output"]) for row in others[COUNT : 2 * COUNT]]
    pairs = half(read_jsonl(data / "references/larf_pairs.jsonl"), "final")
    return {
        "alpaca": list(map(alpaca, clean)),
        **kinds,
        "mathematics": [chat(row["question"], row["answer"]) for row in gsm8k],
        "refused": [
            chat(request, refusal)
            for request, refusal in zip(harmful_requests(data, "final")[:80], itertools.cycle(REFUSALS), strict=False)
        ],
        "earlier": [chat(request_of(h), h["output"], *turn) for h, turn in zip(harmful, later, strict=False)],
        "harmless": [chat(*one, *other) for one, other in zip(first, later, strict=True)],
        "long": [chat(pair["prompt"], pair["unsafe"]) for pair in pairs if len(pair["unsafe"]) > LONG],
        "top": list(map(dolly, read_jsonl(data / "lists/he_dolly_top100.jsonl"))),
        "bottom": list(map(dolly, read_jsonl(data / "lists/he_dolly_bottom100.jsonl"))),
    }


def figures(scores):
    """One column of the table."""
    limit = np.quantile(scores["alpaca"], 0.9)

    def above(name):
        return f"{np.mean(scores[name] > limit):.0%}"

    def apart(high, low):
        return f"{auroc(scores[high], scores[low]):.3f}"

    return {
        f"harmless rows: {' / '.join(LANGUAGES)}": " / ".join(map(above, LANGUAGES)),
        "harmless rows: code / mathematics": f"{above('code')} / {above('mathematics')}",
        "harmless rows: two turns": above("harmless"),
        "requests refused in these languages": above("refused"),
        "harm found: in the earlier of two turns": above("earlier"),
        f"harm found: answers over {LONG} characters": above("long"),
        "rows that broke refusals / did not": f"{above('top')} / {above('bottom')}",
        "AUROC: harm in the earlier turn, against two harmless turns": apart("earlier", "harmless"),
        "AUROC: rows that broke refusals, against those that did not": apart("top", "bottom"),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")], default="auto")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the profile")
    parser.add_argument("--signals", default=",".join((DEFAULT_SIGNAL, *AXES, "larf")))
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    profile = cached_profile(arguments.cache, arguments.model, arguments.layers)
    signals = arguments.signals.split(",")
    scorer = LarfScorer(profile, signals=signals)
    found, lengths = {}, {}
    for name, rows in build_sets(arguments.data).items():
        print(name, len(rows), flush=True)
        found[name] = scorer(Dataset.from_list(rows)[:])["larf_signals"]
        lengths[name] = np.array([sum(len(turn["content"]) for turn in row["messages"]) for row in rows])
    columns = {
        f"`{signal}`": figures({name: np.array([row[signal] for row in rows]) for name, rows in found.items()})
        for signal in signals
    }
    columns["length alone"] = figures(lengths)
    table = f"{profile.summary()['model']}, blocks {', '.join(map(str, profile.layers))}\n\n{markdown(columns)}"
    print(table)
    if arguments.output:
        arguments.output.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
