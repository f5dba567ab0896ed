"""How well every signal finds the harmful rows of a labelled mix, and how far it follows their length.

    python tests/benchmarks/signals.py --model MODEL --mix MIX.jsonl [--label is_harmful] [--layers auto 9,12,14 all]
        [--unsafe FILE --safe FILE] [--limit 60] -o FOLDER

The states of all layers are read once; every signal and both baselines, made from the references alone, then score the
rows. Writes ``signals.json`` and ``signals.md``: AUROC, average precision and recall in the top tenth (of as many
harmful rows as fit into it), with 95 % intervals (bootstrap over rows), and Spearman's correlation with length within
the harmless rows. Of layers, ``each`` gives a line for every layer alone, ``all`` the mean over all, ``auto`` those
that a profile would choose, ``9,12`` the mean over these.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from larf_curate.diagnose.figures import auroc, average_precision, rank_correlation
from larf_curate.errors import ConversationError
from larf_curate.hidden_states import POSITIONS
from larf_curate.profile import SafetyProfile
from larf_curate.references import ReferenceSet, load_neutral
from larf_curate.rendering import Renderer
from larf_curate.signals import SIGNALS
from larf_curate.signals.baselines import BASELINES, text_of

BATCH = 250
COLUMNS = ("AUROC", "average precision", "recall in top tenth")


def read_mix(path, label, limit):
    """Rows without their label, and the labels, of all that can be scored; a limit takes the first of each class."""
    rows = [row for row in Dataset.from_json(str(path)) if is_scorable(row)]
    harmful = np.array([bool(row.pop(label)) for row in rows])
    if limit:
        places = np.sort(np.concatenate([np.flatnonzero(harmful == side)[: limit // 2] for side in (True, False)]))
        rows, harmful = [rows[i] for i in places], harmful[places]
    return rows, harmful


def is_scorable(row):
    try:
        text_of(row)
    except ConversationError:
        return False
    return True


def read_rows(profile, rows, device):
    """States of each row's last turn at every layer; float16, since a large mix has many."""
    reader = profile.reader(device=device)
    render = Renderer(reader.tokenizer, reader.max_length)
    parts = []
    for start in tqdm(range(0, len(rows), BATCH), desc="Reading"):
        items = render(rows[start : start + BATCH])
        tokens = [replace(item.tokens, turns=item.tokens.turns[-1:]) for item in items]
        states = reader(tokens, POSITIONS)
        parts.append({p: v if p == "length" else v.astype(np.float16) for p, v in states.items()})
    return {p: np.concatenate([part[p] for part in parts]) for p in POSITIONS}


def score(profile, name, states):
    """Mean over the profile's layers, shape (n,)."""
    signal = profile.fit(name)
    count = len(states["length"])
    parts = [{p: v[i : i + BATCH].astype(np.float32) for p, v in states.items()} for i in range(0, count, BATCH)]
    return np.concatenate([signal(part).mean(axis=1) for part in parts])


def figures(scores, harmful):
    top = np.argsort(-scores, kind="stable")[: max(1, round(len(scores) / 10))]
    most = min(len(top), int(harmful.sum()))  # where harmful rows are more than a tenth, the tenth can be full of them
    recall = harmful[top].sum() / most
    return np.array(
        [auroc(scores[harmful], scores[~harmful]), average_precision(scores[harmful], scores[~harmful]), recall]
    )


def measure(scores, harmful, lengths, draws):
    """Figures with intervals."""
    rng = np.random.default_rng(0)
    sides = [np.flatnonzero(harmful), np.flatnonzero(~harmful)]
    drawn = []
    for _ in range(draws):
        rows = np.concatenate([rng.choice(side, len(side)) for side in sides])
        drawn.append(figures(scores[rows], harmful[rows]))
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    found = zip(COLUMNS, figures(scores, harmful), low, high, strict=True)
    cells = {name: {"value": float(v), "low": float(a), "high": float(b)} for name, v, a, b in found}
    return cells | {"length, harmless rows": rank_correlation(scores[~harmful], lengths[~harmful])}


def layer_choices(profile, asked):
    """(name, layers or None for the signal's own choice) of every choice asked for."""
    for item in asked:
        if item == "each":
            yield from ((str(layer), (layer,)) for layer in profile.layers)
        elif item == "all":
            yield "all", profile.layers
        else:
            yield item, None if item == "auto" else tuple(map(int, item.split(",")))


def markdown(rows):
    def cell(value):
        if isinstance(value, dict):
            return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
        return f"{value:+.2f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(cell(v) for v in row.values()) + " |" for row in rows)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--mix", type=Path, required=True)
    parser.add_argument("--label", default="is_harmful")
    parser.add_argument("--layers", nargs="+", default=["auto"])
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS))
    parser.add_argument("--unsafe", help="unsafe references, with --safe; the built-in pairs if left out")
    parser.add_argument("--safe")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="use so many rows, half of them harmful")
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()

    refs = ReferenceSet.from_sides(arguments.unsafe, arguments.safe) if arguments.unsafe else ReferenceSet.load()
    rows, harmful = read_mix(arguments.mix, arguments.label, arguments.limit)
    profile = SafetyProfile.build(arguments.model, refs, layers="all", dtype=arguments.dtype, device=arguments.device)
    states = read_rows(profile, rows, arguments.device)
    lengths = states["length"][:, 0, 0]
    table = []
    for name in arguments.signals:
        for label, layers in layer_choices(profile, arguments.layers):
            chosen = layers or replace(profile, signal=name).best_layers()
            places = [profile.layers.index(layer) for layer in chosen]
            scores = score(profile.at(chosen), name, {p: v[:, places] for p, v in states.items()})
            shown = label if layers else f"auto ({', '.join(map(str, chosen))})"
            table.append({"signal": name, "layers": shown} | measure(scores, harmful, lengths, arguments.draws))
    texts = [[text_of(row) for row in side] for side in (refs.unsafe, [*refs.safe, *load_neutral()], rows)]
    for name, fit in BASELINES.items():
        scores = fit(texts[0], texts[1])(texts[2])
        table.append({"signal": f"{name} alone", "layers": ""} | measure(scores, harmful, lengths, arguments.draws))
    about = {
        "model": profile.summary()["model"],
        "mix": arguments.mix.name,
        "rows": len(rows),
        "harmful": int(harmful.sum()),
        "references": profile.summary()["references"],
        "dtype": arguments.dtype,
        "draws": arguments.draws,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "signals.json").write_text(json.dumps({"about": about, "signals": table}, indent=2))
    text = f"{markdown(table)}\n\n{json.dumps(about)}"
    (arguments.output / "signals.md").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
