"""How well *find similar* and the groups of near-identical rows do on stored states and on edited rows of a model.

    python -m tests.benchmarks.similar states --references unsafe.npz safe.npz neutral.npz --rows mix.npz --layers 9 14
    python -m tests.benchmarks.similar edits --profile PROFILE --data rows.jsonl

``states``: of the 10 rows nearest to each by the cosine of whole centred states, how many are among the 10 nearest
after the reduction; the files have ``last`` of shape (rows, layers, width). ``edits``: the cosine of rows with
themselves after small edits, by which the threshold of near-identical rows was set.
"""

import argparse
import json
import random

import numpy as np

from larf_curate.review.records.near_duplicates import MIN_COSINE
from larf_curate.review.records.vectors import Reduction, unit_rows

NEAREST = 10


def nearest(units):
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    return np.argsort(-cosines, axis=1)[:, :NEAREST], cosines.max(axis=1)


def shared(first, second):
    return np.mean([len({*a} & {*b}) / NEAREST for a, b in zip(first, second, strict=True)])


def states(args):
    print("| layer | reduced by | of the 10 nearest kept | highest cosine of two rows |\n| --- | --- | --- | --- |")
    for layer in args.layers:
        known = np.concatenate([np.load(path)["last"][:, layer].astype(np.float32) for path in args.references])
        rows = np.load(args.rows)["last"][:, layer].astype(np.float32)
        principal, chance = Reduction.fit(known, name="p"), Reduction.random(rows.shape[1])
        truth, highest = nearest(principal.centred(rows))
        for name, reduction in (("principal directions", principal), ("random directions", chance)):
            kept = shared(truth, nearest(reduction(rows))[0])
            print(f"| {layer} | {name}, {reduction.dimensions} | {kept:.1%} | {highest.max():.3f} |")


def edits(args):
    from larf_curate.profile import SafetyProfile, read_states

    rng = random.Random(0)
    with open(args.data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    random.Random(1).shuffle(rows)
    rows = [row for row in rows if len(row["output"]) < 500][: args.rows]
    asked = [f"{row['instruction']} {row.get('input') or ''}".strip() for row in rows]
    profile = SafetyProfile.from_pretrained(args.profile)
    reduction, reader = Reduction.of_profile(profile), profile.reader()

    def read(pairs):
        made = [{"question": question, "answer": answer} for question, answer in pairs]
        return read_states(reader, made, "edited")["last"][:, 0]

    def without_a_letter(text):
        place = rng.randrange(1, max(2, len(text) - 2))
        return text[:place] + text[place + 1 :]

    def another_word(text):
        words = text.split(" ")
        words[rng.randrange(len(words))] = "some"
        return " ".join(words)

    pairs = [(question, row["output"]) for question, row in zip(asked, rows, strict=True)]
    kinds = {
        "none": lambda q, a: (q, a),
        "“Please” before the request": lambda q, a: (f"Please {q}", a),
        "a letter of the request left out": lambda q, a: (without_a_letter(q), a),
        "a letter of the answer left out": lambda q, a: (q, without_a_letter(a)),
        "a word of the answer replaced": lambda q, a: (q, another_word(a)),
        "the answer's last full stop left out": lambda q, a: (q, a.rstrip(".!")),
        "a sentence added to the answer": lambda q, a: (q, f"{a} I hope this helps."),
        "another request, the same answer": lambda q, a: ("What do you think?", a),
    }
    before = read(pairs)
    print(f"| edit ({len(rows)} rows) | least | median | raw, median | counted as near-identical |")
    print("| --- | --- | --- | --- | --- |")
    for name, edit in kinds.items():
        after = read([edit(*pair) for pair in pairs])
        cosines = (reduction.centred(before) * reduction.centred(after)).sum(axis=1)
        raw = (unit_rows(before) * unit_rows(after)).sum(axis=1)
        share = (cosines >= MIN_COSINE).mean()
        print(
            f"| {name} | {cosines.min():.3f} | {np.median(cosines):.3f} | {np.median(raw):.3f} | {share:.0%} |",
            flush=True,
        )
    _, highest = nearest(reduction.centred(before))
    _, raw = nearest(unit_rows(before))
    apart = f"{np.median(highest):.3f} | {np.median(raw):.3f} | {(highest >= MIN_COSINE).mean():.0%}"
    print(f"| (different rows, nearest) | | {apart} |")


def main():
    told = argparse.ArgumentParser()
    kinds = told.add_subparsers(required=True)
    kind = kinds.add_parser("states")
    kind.add_argument("--references", nargs="+", required=True)
    kind.add_argument("--rows", required=True)
    kind.add_argument("--layers", nargs="+", type=int, required=True)
    kind.set_defaults(run=states)
    kind = kinds.add_parser("edits")
    kind.add_argument("--profile", required=True)
    kind.add_argument("--data", required=True)
    kind.add_argument("--rows", type=int, default=24)
    kind.set_defaults(run=edits)
    args = told.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
