"""What decisions on one dataset change on others: added to a profile, and as a ranking that is transferred.

    python -m tests.benchmarks.teaching --model MODEL --layers 16,17,19 --data DATA --cache CACHE
        [--draws 10] -o FILE.md

``DATA`` is that of ``refusals.py``. The sets are 250 harmful and 750 harmless rows of the Alpaca mix; 250 rows of
GSM8K; the 97 pairs of LARF's authors, answered and refused; and contrast prompts of XSTest, all with one short answer.
Alpaca and XSTest are split into random halves, anew for each draw: decisions are on one half, figures on the other.
A simulated person decides by the label, on the upper half of rows by score, as if these had been flagged; of wrong
clicks the share given is flipped at random. States are kept in the cache, so that a second run needs no model.

The first table has AUROC before and after the decisions were added to the profile (`add_decided`), by signal. The
second has AUROC among undecided rows by the score, by a ranking that learned from some decisions on these rows, and by
one that also learned from the decisions on the other dataset (``review rerank --decisions``). Both are means over
draws, with the lowest and highest in brackets.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from larf_curate.profile import read_states
from larf_curate.profile.decided import KEPT_ANSWERS, REMOVED
from larf_curate.profile.versions import DecidedRows, add_decided
from larf_curate.review.learning import References, StoredRows, rank
from larf_curate.review.learning.inputs import DecidedRows as Earlier
from larf_curate.states import POSITIONS
from larf_curate.stats import auroc
from tests.benchmarks.refusals import cached_profile, chat, contrast_pairs, read_jsonl

WRONG = (0.0, 0.05)
FLAGGED = 0.5
OWN_REFERENCES = {"safe": "references: unsafe / safe, held out", "neutral": "unsafe / neutral, held out"}
OWN = (0, 20, 60)
"""Numbers of decisions on the ranked rows themselves."""


def build_sets(data):
    mix = [row for row in read_jsonl(data / "mixes/alpaca_2500_harmful10.jsonl") if row["output"].strip()]
    clean = [row for row in mix if not row["is_harmful"]][:750]
    pairs, contrasts = read_jsonl(data / "references/larf_pairs.jsonl"), list(contrast_pairs(data))
    sets = {"harmful": [row for row in mix if row["is_harmful"]], "clean": clean}
    sets["gsm8k"] = [chat(row["question"], row["answer"]) for row in read_jsonl(data / "gsm8k_test.jsonl")[:250]]
    sets |= {f"larf_{side}": [chat(pair["prompt"], pair[side]) for pair in pairs] for side in ("unsafe", "safe")}
    for side in ("unsafe", "safe"):
        prompts = [row["prompt"] for row in contrasts if row["label"] == side]
        sets[f"xstest_{side}"] = [chat(prompt, "Sure, here is an answer to your question.") for prompt in prompts]
    return {
        name: [{key: row[key] for key in row if key != "is_harmful"} for row in rows] for name, rows in sets.items()
    }


def read_all(arguments, profile):
    """States by set, from the cache or read and put there."""
    states, reader = {}, None
    for name, rows in build_sets(arguments.data).items():
        file = arguments.cache / f"teaching-{name}.npz"
        if not file.exists():
            reader = reader or profile.reader()
            np.savez(file, **read_states(reader, rows, name))
        with np.load(file) as kept:
            states[name] = dict(kept)
    return states


def taken(states, rows):
    return {position: values[rows] for position, values in states.items()}


def joined(parts):
    return {position: np.concatenate([part[position] for part in parts]) for position in POSITIONS}


def draw(states, rng):
    """Datasets of harmful and other rows: those that are decided, and those for figures."""
    halves = {}
    for name in ("harmful", "clean", "xstest_unsafe", "xstest_safe"):
        order = rng.permutation(len(states[name]["last"]))
        middle = len(order) // 2
        halves[name] = [taken(states[name], part) for part in (order[:middle], order[middle:])]
    decided = {
        "Alpaca": (halves["harmful"][0], halves["clean"][0]),
        "XSTest": (halves["xstest_unsafe"][0], halves["xstest_safe"][0]),
    }
    figures = {
        "Alpaca, other half": (halves["harmful"][1], halves["clean"][1]),
        "LARF's answers / GSM8K": (states["larf_unsafe"], states["gsm8k"]),
        "LARF's answers / refusals": (states["larf_unsafe"], states["larf_safe"]),
        "XSTest, other half": (halves["xstest_unsafe"][1], halves["xstest_safe"][1]),
    }
    return decided, figures


def scores(profile, states, signal=None):
    return profile.fit(signal)(states).mean(axis=1)


def judged(profile, dataset, wrong, rng):
    """Rows of a dataset that score highest, with decisions on them; true is to remove."""
    high, low = dataset
    states = joined([high, low])
    harmful = np.repeat([True, False], [len(high["last"]), len(low["last"])])
    flagged = np.argsort(-scores(profile, states))[: round(FLAGGED * len(harmful))]
    return taken(states, flagged), harmful[flagged] ^ (rng.random(len(flagged)) < wrong)


def measured(profile, figures):
    return {name: auroc(*(scores(profile, side) for side in sides)) for name, sides in figures.items()}


def taught(profile, states, removed):
    """The profile with these rows; none of the kept ones refuses."""
    sides = np.where(removed, REMOVED, KEPT_ANSWERS)
    return add_decided(profile, DecidedRows(states=states, sides=sides, labels=("harm",) * len(sides)), [])


def cell(values):
    return f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def versions_table(profile, states, draws, signals):
    """AUROC before and after by signal, decided dataset and share of wrong clicks."""
    found = {}

    def add(case, cells):
        for name, value in cells.items():
            found.setdefault(case, {}).setdefault(name, []).append(value)

    for seed in tqdm(range(draws), desc="Versions"):
        decided, figures = draw(states, np.random.default_rng(seed))
        for base in (replace(profile, signal=signal) for signal in signals):
            add((base.signal, "nothing", 0.0), measured(base, figures))
            for source, wrong in itertools.product(decided, WRONG):
                rows, removed = judged(base, decided[source], wrong, np.random.default_rng([seed, 1]))
                new = taught(base, rows, removed)
                own = {text: new.decisions["figures"][name] for name, text in OWN_REFERENCES.items()}
                add((base.signal, source, wrong), measured(new, figures) | {n: own[n]["after"] for n in own})
            add((base.signal, "nothing", 0.0), {name: own[name]["before"] for name in own})
    names = [*figures, *OWN_REFERENCES.values()]
    lines = [
        f"| signal | decided | wrong clicks | {' | '.join(names)} |",
        "| --- | --- | --- |" + " --- |" * len(names),
    ]
    for (signal, source, wrong), cells in found.items():
        values = " | ".join(cell(cells[name]) for name in names)
        lines.append(f"| `{signal}` | {source} | {wrong:.0%} | {values} |")
    return "\n".join(lines)


def stored(profile, states):
    """Rows as scoring stores them."""
    axes = np.column_stack([scores(profile, states, name) for name in profile.axes])
    return StoredRows(
        scores=scores(profile, states).astype(np.float64),
        signals=axes.astype(np.float64),
        states=states["last"][:, 0].astype(np.float16),
        has_state=np.ones(len(axes), bool),
    )


def transfer_table(profile, states, draws, signals):
    """AUROC among undecided rows by order, ranked rows, own decisions and what the ranking learned from."""
    found = {}
    for seed in tqdm(range(draws), desc="Transfer"):
        decided, figures = draw(states, np.random.default_rng(seed))
        others = joined([states["gsm8k"], states["larf_safe"]])
        ranked = {
            "Alpaca, other half": figures["Alpaca, other half"],
            "LARF's answers / GSM8K and refusals": (states["larf_unsafe"], others),
            "XSTest, other half": figures["XSTest, other half"],
        }
        for base, wrong in itertools.product([replace(profile, signal=signal) for signal in signals], WRONG):
            rows, removed = judged(base, decided["Alpaca"], wrong, np.random.default_rng([seed, 1]))
            earlier = Earlier(rows=stored(base, rows), positive=removed)
            for name, own in itertools.product(ranked, OWN):
                values = transferred(base, ranked[name], own, earlier, wrong, np.random.default_rng([seed, own]))
                found.setdefault((base.signal, name, own, wrong), []).append(values)
    lines = ["| order | rows | own decisions | wrong clicks | score alone | own decisions | and those on Alpaca |"]
    lines.append("| --- |" + " --- |" * 6)
    for (signal, name, own, wrong), values in found.items():
        cells = " | ".join(cell(column) for column in zip(*values, strict=True))
        lines.append(f"| `{signal}` | {name} | {own} | {wrong:.0%} | {cells} |")
    return "\n".join(lines)


def transferred(profile, dataset, own, earlier, wrong, rng):
    """AUROC among undecided rows by the score, by own decisions, and by both."""
    rows = stored(profile, joined(dataset))
    harmful = np.repeat([True, False], [len(side["last"]) for side in dataset])
    # Half of the own decisions are on the rows that score highest, half on any.
    order = np.argsort(-rows.scores)
    decided = np.concatenate([order[: own // 2], rng.choice(order[own // 2 :], own - own // 2, replace=False)])
    clicks = harmful[decided] ^ (rng.random(own) < wrong)
    references = References.of(profile)
    left = np.setdiff1d(np.arange(len(harmful)), decided)
    orders = [rows.scores]
    orders += [
        rank(rows, decided, clicks, references, earlier=others, judge=False).scores for others in (None, earlier)
    ]
    return [auroc(order[left][harmful[left]], order[left][~harmful[left]]) for order in orders]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")], default="auto")
    parser.add_argument("--signals", default="combined,larf")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)
    profile = cached_profile(arguments.cache, arguments.model, arguments.layers)
    states, signals = read_all(arguments, profile), arguments.signals.split(",")
    title = f"{profile.summary()['model']}, blocks {', '.join(map(str, profile.layers))}, {arguments.draws} draws"
    tables = [table(profile, states, arguments.draws, signals) for table in (versions_table, transfer_table)]
    text = "\n\n".join([title, *tables])
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
