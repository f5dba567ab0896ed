"""How many rows people review until 95 % of the harmful ones were before them, with and without learning.

    python tests/benchmarks/learning.py --rows SCORED --label is_harmful --profile PROFILE [--orders score larf]
        [--share 0.1] [--draws 20] [--batch 10] [--wrong 0 0.05] -o FOLDER
    python tests/benchmarks/learning.py --speed 100000

A simulated annotator decides every row by its label. SCORED is a folder that ``score --keep-states`` wrote, its rows
with a column of labels, or an ``.npz`` with ``label``, ``state``, one ``score:NAME`` an order, ``signals:NAME`` if that
order has axes, and the reference states ``unsafe``, ``safe``, ``neutral``. An order is ``score`` (``larf_score`` with
its axes) or the name of a signal in ``larf_signals``, which then is all that the machine knows. Each draw takes all
harmless rows and as many random harmful ones as make up the share; rows come in random order.

Policies: the order alone; learning, which ranks anew after every batch and shows the highest; mixed, where half of each
batch is what the ranking is least certain of; learning without references; and random order. Of wrong clicks the share
given is flipped at random; a harmful row counts once a person had it before them. Writes ``learning.json``,
``learning.md`` and ``learning.png``.

``--speed`` times the re-ranking of so many rows of width 576 after 1,000 decisions, with held-out figures.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from larf_curate.review.learning import References, StoredRows, rank

TARGET = 0.95
POLICIES = ("alone", "learning", "mixed", "learning, no references")


def read(path, label, profile, orders):
    """Labels, stored rows by order, and references."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            found = dict(file)
        none = np.empty((len(found["label"]), 0))
        rows = {
            name: _rows(found[f"score:{name}"], found.get(f"signals:{name}", none), found["state"]) for name in orders
        }
        return found["label"].astype(bool), rows, References(**{s: found[s] for s in ("unsafe", "safe", "neutral")})
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.folder import Scored

    scored = Scored.load(path).rows
    scored = scored.filter(lambda row: row["larf_score"] is not None)
    whole = StoredRows.of(scored)
    names = list(scored.features["larf_signals"])
    rows = {
        name: whole
        if name == "score"
        else _rows(whole.signals[:, names.index(name)], np.empty((len(scored), 0)), whole.states)
        for name in orders
    }
    references = References.of(SafetyProfile.from_pretrained(profile)) if profile else None
    return np.array(scored[label], bool), rows, references


def _rows(scores, signals, states):
    has_state = np.ones(len(scores), bool)
    return StoredRows(
        scores=np.asarray(scores, np.float64),
        signals=np.asarray(signals, np.float64),
        states=np.asarray(states, np.float16),
        has_state=has_state,
    )


def taken(rows, places):
    return StoredRows(
        scores=rows.scores[places],
        signals=rows.signals[places],
        states=rows.states[places],
        has_state=rows.has_state[places],
    )


def draw(harmful, share, rng):
    """All harmless rows and enough harmful ones, in random order."""
    count = min(int(harmful.sum()), round((~harmful).sum() * share / (1 - share)))
    chosen = rng.choice(np.flatnonzero(harmful), count, replace=False)
    return rng.permutation(np.concatenate([chosen, np.flatnonzero(~harmful)]))


def review(rows, harmful, references, *, policy, batch, wrong, rng):
    """The order in which rows come before a person until the target is reached."""
    if policy == "alone":
        return np.argsort(-rows.scores, kind="stable")
    seen, clicks = [], []
    pending = np.ones(len(harmful), bool)
    while harmful[seen].sum() < TARGET * harmful.sum():
        learned = rank(
            rows,
            np.array(seen, np.intp),
            np.array(clicks, bool),
            None if policy.endswith("no references") else references,
            judge=False,
        )
        left = np.flatnonzero(pending)
        best = left[np.argsort(-learned.scores[left], kind="stable")]
        shown = best[:batch]
        if policy == "mixed":
            rest = best[batch - batch // 2 :]
            even = rest[np.argsort(abs(learned.chances[rest] - 0.5), kind="stable")]
            shown = np.concatenate([best[: batch - batch // 2], even[: batch // 2]])
        seen.extend(shown)
        clicks.extend(harmful[shown] ^ (rng.random(len(shown)) < wrong))
        pending[shown] = False
    return np.array(seen)


def reviews_until(order, harmful):
    """Rows reviewed until the target share of harmful ones was seen."""
    found = np.cumsum(harmful[order])
    return int(np.searchsorted(found, np.ceil(TARGET * harmful.sum())) + 1)


def curve(order, harmful, points):
    found = np.cumsum(harmful[order]) / harmful.sum()
    return np.interp(points, np.arange(1, len(found) + 1), found, right=found[-1])


def measure(harmful, orders, references, arguments):
    """Reviews by (order, policy, wrong clicks), one a draw, and curves of those without wrong clicks."""
    counts, curves, sizes = {}, {}, []
    for seed in tqdm(range(arguments.draws), desc="Draws"):
        places = draw(harmful, arguments.share, np.random.default_rng(seed))
        labels = harmful[places]
        sizes.append((len(labels), int(labels.sum())))
        points = np.arange(1, len(labels) + 1)
        cases = [("random", "alone", 0.0)]
        for name in orders:
            cases += [(name, "alone", 0.0), *((name, p, wrong) for p in POLICIES[1:] for wrong in arguments.wrong)]
        for number, case in enumerate(cases):
            name, policy, wrong = case
            if name == "random":
                order = np.random.default_rng([seed, 1]).permutation(len(labels))
            else:
                order = review(
                    taken(orders[name], places),
                    labels,
                    references,
                    policy=policy,
                    batch=arguments.batch,
                    wrong=wrong,
                    rng=np.random.default_rng([seed, number]),
                )
            counts.setdefault(case, []).append(reviews_until(order, labels))
            if not wrong:
                curves.setdefault(case[:2], []).append(curve(order, labels, points))
    return counts, curves, sizes


def table(counts, base):
    """Mean over draws, the range that holds 95 % of them, and the ratio to the base order, draw by draw."""
    rows = []
    for (name, policy, wrong), values in counts.items():
        ratio = np.array(values) / np.array(counts[base])
        rows.append(
            {
                "order": name,
                "policy": policy,
                "wrong clicks": wrong,
                "reviews": float(np.mean(values)),
                "low": float(np.percentile(values, 2.5)),
                "high": float(np.percentile(values, 97.5)),
                "worst": int(max(values)),
                "of plain order": float(ratio.mean()),
                "worst of plain order": float(ratio.max()),
            }
        )
    return rows


def markdown(rows, base):
    head = f"| order | policy | wrong clicks | reviews [95 % of draws] | worst | share of plain {base} order (worst) |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        cells = (
            row["order"],
            row["policy"],
            f"{row['wrong clicks']:.0%}",
            f"{row['reviews']:.0f} [{row['low']:.0f}, {row['high']:.0f}]",
            row["worst"],
            f"{row['of plain order']:.2f} ({row['worst of plain order']:.2f})",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def plot(curves, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = {"alone": "--", "learning": "-", "mixed": ":", "learning, no references": "-."}
    colours = dict(
        zip(dict.fromkeys(name for name, _ in curves), ("0.6", "#0f766e", "#c2410c", "#1d4ed8"), strict=False)
    )
    for (name, policy), lines in curves.items():
        length = min(map(len, lines))
        mean = 100 * np.mean([line[:length] for line in lines], axis=0)
        axes.plot(np.arange(1, length + 1), mean, styles[policy], color=colours[name], label=f"{name}, {policy}")
    axes.axhline(100 * TARGET, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="rows reviewed", ylabel="harmful rows seen, %", ylim=(0, 101), xlim=(0, None))
    axes.legend(fontsize=8, frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def speed(count, width=576, decisions=1000):
    """Seconds to rank rows anew, best of three."""
    rng = np.random.default_rng(0)
    states = np.empty((count, width), np.float16)
    for start in range(0, count, 10_000):
        states[start : start + 10_000] = rng.normal(size=(min(10_000, count - start), width))
    rows = _rows(rng.normal(size=count), rng.normal(size=(count, 2)), states)
    sides = {"unsafe": 140, "safe": 140, "neutral": 254}
    references = References(**{side: rng.normal(size=(m, width)).astype(np.float32) for side, m in sides.items()})
    places = rng.choice(count, decisions, replace=False)
    bad = states[places, 0] > 0
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        rank(rows, places, bad, references)
        taken.append(time.perf_counter() - start)
    about = {"rows": count, "width": width, "decisions": decisions, "seconds": [round(t, 3) for t in taken]}
    print(json.dumps(about))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--label", default="is_harmful")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--orders", nargs="+", default=["score", "larf"])
    parser.add_argument("--base", default="larf", help="the order whose plain reviews are the measure")
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--wrong", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("--speed", type=int)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    if arguments.speed:
        speed(arguments.speed)
        return
    harmful, orders, references = read(arguments.rows, arguments.label, arguments.profile, arguments.orders)
    counts, curves, sizes = measure(harmful, orders, references, arguments)
    rows = table(counts, (arguments.base, "alone", 0.0))
    about = {
        "rows": sizes[0][0],
        "harmful": sizes[0][1],
        "target": TARGET,
        "draws": arguments.draws,
        "batch": arguments.batch,
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "learning.json").write_text(json.dumps({"about": about, "reviews": rows}, indent=2))
    text = f"{markdown(rows, arguments.base)}\n\n{json.dumps(about)}"
    (arguments.output / "learning.md").write_text(text + "\n", encoding="utf-8")
    plot(curves, arguments.output / "learning.png")
    print(text)


if __name__ == "__main__":
    main()
