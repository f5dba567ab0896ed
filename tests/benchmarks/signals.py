"""How well every signal, at every block, finds what it should find, and how far it follows length instead.

    python tests/benchmarks/signals.py --model MODEL --states CACHE -o FOLDER --mix MIX.jsonl
        [--xstest PROMPTS.csv] [--lists TOP.jsonl BOTTOM.jsonl] [--references builtin PAIRS.jsonl] [--limit 1000]

Sets: ``mix``, rows with a column ``is_harmful``; ``xstest``, contrast pairs of XSTest that the model itself answers,
the unsafe prompts against the safe ones; ``lists``, rows that broke a model's refusals against rows that did not. With
``--limit`` a mix keeps its share of harmful rows; its first of each class are taken.

The last tables are about the layers at which the default is read: by the separation of references alone; by that and
what refusals depend on, counted as ``auto`` does, in what a state carries, or block by block; and the blocks that
refusals depend on most.

States of references and rows are read once and kept in the cache with the answers, so that a second run needs no model.
Every signal and both baselines are made from the references alone. Writes ``signals.json``, ``signals.md`` and
``signals.png``: AUROC, average precision and recall in the top tenth (as if harmful rows were a tenth of all), at the
layers a profile chooses by its references, with 95 % intervals (bootstrap over rows), and Spearman's correlation with
length within the other rows; and the AUROC at every block.
"""

import argparse
import csv
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from datasets import Dataset
from tqdm import tqdm

from larf_curate.conversation.chat_template import Renderer
from larf_curate.data.references import ReferenceSet, load_neutral
from larf_curate.errors import ConversationError
from larf_curate.layers import LayerReport, find_safety_layers
from larf_curate.layers.choice import CHOSEN, separation
from larf_curate.profile import SafetyProfile
from larf_curate.profile.layer_choice import sensitivity_of
from larf_curate.signals import AXES, DEFAULT_SIGNAL, SIGNALS
from larf_curate.signals.baselines import BASELINES, text_of
from larf_curate.states import POSITIONS
from larf_curate.stats import auroc, average_precision, rank_correlation

BATCH = 250
TENTH = 0.1
PAIRS_A_TYPE = 17
COLUMNS = ("AUROC", "average precision", "recall in top tenth")


@dataclass(frozen=True)
class Labelled:
    """Rows, and which of them a score should find."""

    rows: list
    bad: np.ndarray


def read_mix(path, label, limit):
    """All rows that can be scored; a limit takes the first of each class and keeps its share."""
    rows = [row for row in Dataset.from_json(str(path)) if is_scorable(row)]
    bad = np.array([bool(row.pop(label)) for row in rows])
    if limit and limit < len(rows):
        harmful = max(1, round(limit * bad.mean()))
        counts = ((True, harmful), (False, limit - harmful))
        places = np.sort(np.concatenate([np.flatnonzero(bad == side)[:count] for side, count in counts]))
        rows, bad = [rows[i] for i in places], bad[places]
    return Labelled(rows, bad)


def is_scorable(row):
    try:
        text_of(row)
    except ConversationError:
        return False
    return True


def read_lists(top, bottom):
    sides = [[row for row in Dataset.from_json(str(path)) if is_scorable(row)] for path in (top, bottom)]
    return Labelled([*sides[0], *sides[1]], np.repeat([True, False], [len(side) for side in sides]))


def read_xstest(path, model, device):
    """Prompts of contrast pairs, every type as often, with the model's own greedy answers."""
    from larf_curate.models.generation import generate_answers, load_model

    with Path(path).open(encoding="utf-8", newline="") as file:
        prompts = list(csv.DictReader(file))
    kinds = {row["type"].removeprefix("contrast_") for row in prompts if row["type"].startswith("contrast_")}
    chosen = []
    for kind in sorted(kinds):
        sides = [[row for row in prompts if row["type"] == name] for name in (f"contrast_{kind}", kind)]
        count = min(PAIRS_A_TYPE, *map(len, sides))  # none of two kinds, whose safe prompts go by another name
        chosen += [row for side in sides for row in side[:count]]
    loaded, tokenizer = load_model(model, device=device)
    answers = generate_answers(loaded, tokenizer, [row["prompt"] for row in chosen], max_new_tokens=64)
    rows = [{"prompt": row["prompt"], "response": answer} for row, answer in zip(chosen, answers, strict=True)]
    good = [i for i, row in enumerate(rows) if is_scorable(row)]
    return Labelled([rows[i] for i in good], np.array([chosen[i]["label"] == "unsafe" for i in good]))


def cached_set(folder, name, read):
    """A set's rows from the cache, or read and put there."""
    file = folder / f"{name}.json"
    if not file.exists():
        found = read()
        file.write_text(json.dumps({"rows": found.rows, "bad": found.bad.tolist()}), encoding="utf-8")
    kept = json.loads(file.read_text(encoding="utf-8"))
    return Labelled(kept["rows"], np.array(kept["bad"]))


def cached_profile(folder, model, references, dtype, device):
    """A profile of all layers from the cache, or built and put there."""
    place = folder / f"profile-{hashlib.sha256(references.encode()).hexdigest()[:8]}"
    if not place.exists():
        options = {"layers": "all", "dtype": dtype, "device": device}
        SafetyProfile.build(model, ReferenceSet.load(references), **options).save_pretrained(place)
    return SafetyProfile.from_pretrained(place)


def cached_report(folder, model, dtype, device):
    """What the model's refusals depend on, as a profile finds it, from the cache or found and put there."""
    place = folder / "layers.json"
    if not place.exists():
        find_safety_layers(model, dtype=dtype, device=device).save(place)
    return LayerReport.load(place)


def cached_states(folder, name, labelled, profile, device):
    """States of each row's last turn at every layer, float16 since a large mix has many."""
    file = folder / f"{name}.npz"
    if not file.exists():
        reader = profile.reader(device=device)
        render = Renderer(reader.tokenizer, reader.max_length)
        parts = []
        for start in tqdm(range(0, len(labelled.rows), BATCH), desc=name):
            items = render(labelled.rows[start : start + BATCH])
            tokens = [replace(item.tokens, turns=item.tokens.turns[-1:]) for item in items]
            states = reader(tokens, POSITIONS)
            parts.append({p: v if p == "length" else v.astype(np.float16) for p, v in states.items()})
        np.savez(file, **{p: np.concatenate([part[p] for part in parts]) for p in POSITIONS})
    with np.load(file) as kept:
        return {p: kept[p] for p in POSITIONS}


def score(profile, name, states):
    """Scores of shape (n, layers)."""
    signal = profile.fit(name)
    count = len(states["length"])
    parts = [{p: v[i : i + BATCH].astype(np.float32) for p, v in states.items()} for i in range(0, count, BATCH)]
    return np.concatenate([signal(part) for part in parts])


def top_tenth(scores, bad):
    """Share of the bad rows in the top tenth, all bad rows together weighing as much as a tenth of all rows."""
    weights = np.where(bad, TENTH / bad.sum(), (1 - TENTH) / (~bad).sum())
    order = np.argsort(-scores, kind="stable")
    above = np.cumsum(weights[order]) <= TENTH + 1e-9
    return weights[order][above & bad[order]].sum() / TENTH


def figures(scores, bad):
    return np.array(
        [auroc(scores[bad], scores[~bad]), average_precision(scores[bad], scores[~bad]), top_tenth(scores, bad)]
    )


def measure(scores, bad, lengths, draws):
    """Figures with intervals."""
    rng = np.random.default_rng(0)
    sides = [np.flatnonzero(bad), np.flatnonzero(~bad)]
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(side, len(side)) for side in sides])
        drawn.append(figures(scores[rows], bad[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    found = zip(COLUMNS, figures(scores, bad), low, high, strict=True)
    cells = {name: {"value": float(v), "low": float(a), "high": float(b)} for name, v, a, b in found}
    return cells | {"length, other rows": rank_correlation(scores[~bad], lengths[~bad])}


def signal_rows(profile, report, signals, states, bad, draws):
    """A line a signal, at the layers the profile would choose for it, and the AUROC at every block."""
    lengths = states["length"][:, 0, 0]
    for name in tqdm(signals, desc="signals"):
        scores = score(profile, name, states)
        layers = list(replace(profile, signal=name).best_layers(report))
        yield {
            "signal": name,
            "layers": ", ".join(map(str, layers)),
            **measure(scores[:, layers].mean(axis=1), bad, lengths, draws),
            "by block": [auroc(column[bad], column[~bad]) for column in scores.T],
        }


def layer_rows(profile, report, states, bad, draws):
    """A line a way of choosing the layers of the default."""
    blocks = len(profile.layers)
    sensitivity = np.maximum(sensitivity_of(report), 0)
    apart = [np.maximum(separation(SIGNALS[name].fit, profile.references_for(name)), 0) for name in AXES]
    outside = np.r_[: blocks // 4, blocks - blocks // 4 : blocks]
    for values in (sensitivity, *apart):
        values[outside] = 0
    both = np.mean([values / values.max() for values in apart], axis=0) + sensitivity / sensitivity.max()
    default = replace(profile, signal=DEFAULT_SIGNAL)
    ways = {
        "separation": default.best_layers(),
        "separation and what is carried (auto)": default.best_layers(report),
        "separation and sensitivity": sorted(np.argsort(-both, kind="stable")[:CHOSEN].tolist()),
        "sensitivity": sorted(np.argsort(-sensitivity, kind="stable")[:CHOSEN].tolist()),
    }
    scores, lengths = score(default, DEFAULT_SIGNAL, states), states["length"][:, 0, 0]
    for way, layers in ways.items():
        shown = {"layers by": way, "layers": ", ".join(map(str, layers))}
        yield shown | measure(scores[:, list(layers)].mean(axis=1), bad, lengths, draws)


def baseline_rows(refs, labelled, lengths, draws):
    sides = (refs.unsafe, [*refs.safe, *load_neutral()], labelled.rows)
    texts = [[text_of(row) for row in side] for side in sides]
    for name, fit in BASELINES.items():
        scores = fit(texts[0], texts[1])(texts[2])
        yield {"signal": f"{name} alone", "layers": ""} | measure(scores, labelled.bad, lengths, draws)


def markdown(rows):
    def cell(value):
        if isinstance(value, dict):
            return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        return f"{value:+.2f}" if isinstance(value, float) else str(value)

    names = [name for name in rows[0] if name != "by block"]
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(cell(row[name]) for name in names) + " |" for row in rows)])


def draw(tables, path):
    """One heat map a set and reference set: AUROC of every signal at every block."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = {title: [row for row in rows if "by block" in row] for title, rows in tables.items()}
    figure, axes = plt.subplots(len(shown), 1, figsize=(10, 3.4 * len(shown)), squeeze=False, layout="constrained")
    for axis, (title, rows) in zip(axes[:, 0], shown.items(), strict=True):
        image = axis.imshow([row["by block"] for row in rows], vmin=0, vmax=1, cmap="RdBu", aspect="auto")
        axis.set_yticks(range(len(rows)), [row["signal"] for row in rows], fontsize=8)
        axis.set_xlabel("decoder block")
        axis.set_title(title, loc="left", fontsize=10)
    figure.colorbar(image, ax=axes[:, 0], label="AUROC; red: upside down", shrink=0.6)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--states", type=Path, required=True, help="folder that keeps rows, answers and states")
    parser.add_argument("--mix", type=Path)
    parser.add_argument("--label", default="is_harmful")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--xstest", type=Path)
    parser.add_argument("--lists", type=Path, nargs=2)
    parser.add_argument("--references", nargs="+", default=["builtin"])
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()

    arguments.states.mkdir(parents=True, exist_ok=True)
    readers = {
        "mix": arguments.mix and (lambda: read_mix(arguments.mix, arguments.label, arguments.limit)),
        "xstest": arguments.xstest and (lambda: read_xstest(arguments.xstest, arguments.model, arguments.device)),
        "lists": arguments.lists and (lambda: read_lists(*arguments.lists)),
    }
    report = cached_report(arguments.states, arguments.model, arguments.dtype, arguments.device)
    tables, choices, about = {}, {}, {"dtype": arguments.dtype, "draws": arguments.draws, "sets": {}}
    for references in arguments.references:
        profile = cached_profile(arguments.states, arguments.model, references, arguments.dtype, arguments.device)
        about["model"] = profile.summary()["model"]
        for name in (name for name, read in readers.items() if read):
            labelled = cached_set(arguments.states, name, readers[name])
            states = cached_states(arguments.states, name, labelled, profile, arguments.device)
            about["sets"][name] = {"rows": len(labelled.rows), "bad": int(labelled.bad.sum())}
            refs = ReferenceSet.load(references)
            found = list(signal_rows(profile, report, arguments.signals, states, labelled.bad, arguments.draws))
            found += baseline_rows(refs, labelled, states["length"][:, 0, 0], arguments.draws)
            title = f"{name}, references {Path(references).stem}"
            tables[title] = found
            choices[title] = list(layer_rows(profile, report, states, labelled.bad, arguments.draws))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "signals.json").write_text(
        json.dumps({"about": about, "tables": tables, "layers": choices}, indent=2)
    )
    parts = [f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items()]
    parts += [f"## layers: {title}\n\n{markdown(rows)}" for title, rows in choices.items()]
    text = "\n\n".join([*parts, json.dumps(about)])
    (arguments.output / "signals.md").write_text(text + "\n", encoding="utf-8")
    draw(tables, arguments.output / "signals.png")
    print(text)


if __name__ == "__main__":
    main()
