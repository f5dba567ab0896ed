"""Does the estimate of what is left cover the truth, how wide is it, and when does it let people stop?

    python tests/benchmarks/stopping.py [--rows SCORED --label is_harmful] [--reviews 50] [--budget 200]
        [--wrong 0 0.05] -o FOLDER

A simulated annotator decides rows by their label, of wrong clicks the share given is flipped; after every 25 rows the
estimate is looked at, until all rows are read. Whenever the queue is read, the next 200 rows are pushed by expected
harm, which here is the order of the scores. Row sets: of SCORED, a folder that ``score`` wrote, draws with other shares
of harmful rows, by ``larf_score`` or by its signal ``larf``; and synthetic ones, whose scores tell harmful rows
by the AUROC given. Every review draws its rows and its random order anew.

People read what was pushed *guided*, random rows in their order among the others, or *by score*, worst first, as the
page sorts them.

A review counts as covered if the truth is in the interval at every look. Compared with it: the share of harmful rows
among the last 50 decisions as an estimate for all unread rows (Wilson interval), and the rule to stop after 50 kept
rows in a row. Writes ``stopping.json``, ``stopping.md`` and ``stopping.png``.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import norm
from tqdm import tqdm

from larf_curate.review.sampling.choice import Population, plan
from larf_curate.review.sampling.left import left_harmful
from larf_curate.review.sampling.stage import EMPTY

LOOK_EVERY = 25
KEEPS = 50
READERS = ("guided", "by score")
ROWS = 1250
SYNTHETIC = {
    "synthetic 0 %": (0.0, 0.5),
    "synthetic 1 %, AUROC .9": (0.01, 0.9),
    "synthetic 10 %, AUROC .95": (0.1, 0.95),
    "synthetic 10 %, AUROC .3": (0.1, 0.3),
    "synthetic 40 %, AUROC .8": (0.4, 0.8),
}
SHOWN = (
    ("mix 10%, larf_score", "guided", 0.0),
    ("mix 10%, larf_score", "guided", 0.05),
    ("mix 10%, larf", "by score", 0.0),
    ("synthetic 10 %, AUROC .95", "guided", 0.0),
)
"""Cases in the picture."""


def synthetic(share, auroc, rng, count=ROWS):
    """Labels and scores: normal, harmful ones shifted."""
    harmful = np.arange(count) < round(share * count)
    return harmful, rng.normal(size=count) + harmful * np.sqrt(2) * norm.ppf(auroc)


def real(path, label):
    """Row sets by name: functions of a generator that draw labels and scores."""
    from larf_curate.scoring.folder import Scored

    rows = Scored.load(path).rows.filter(lambda row: row["larf_score"] is not None)
    harmful = np.array(rows[label], bool)
    larf = [signals["larf"] for signals in rows["larf_signals"]]
    orders = {"larf_score": np.array(rows["larf_score"]), "larf": np.array(larf)}

    def draw(share, scores, rng):
        count = round(share * ROWS)
        sides = (harmful, count), (~harmful, ROWS - count)
        taken = np.concatenate([rng.choice(np.flatnonzero(side), n, replace=False) for side, n in sides])
        rng.shuffle(taken)
        return harmful[taken], scores[taken]

    return {
        f"mix {share:.0%}, {name}": (lambda rng, share=share, scores=orders[name]: draw(share, scores, rng))
        for name, share in (("larf_score", 0.1), ("larf_score", 0.02), ("larf", 0.1))
    }


def review(harmful, scores, reader, *, budget, wrong, rng):
    """One review: a line for each look, and all rows in the order in which they were read."""
    ids = [f"{number}" for number in range(len(harmful))]
    index = {row: number for number, row in enumerate(ids)}
    clicks = harmful ^ (rng.random(len(harmful)) < wrong)
    chances = np.argsort(np.argsort(scores, kind="stable")) / len(scores)
    population = Population(name="all", ids=ids, chances=chances)
    sampled, labels, looks = EMPTY, {}, []
    while len(labels) < len(ids):
        planned = plan(
            population,
            sampled=sampled,
            queued=set(sampled.rows),
            shared=(),
            labels=labels,
            budget=len(sampled.rows) + budget,
            seed=int(rng.integers(1 << 31)),
        )
        sampled = planned.sampled
        for row in reading_order(reader, planned, scores, index):
            labels[row] = bool(clicks[index[row]])
            if len(labels) % LOOK_EVERY == 0 or len(labels) == len(ids):
                looks.append(look(sampled, labels, harmful, clicks, index))
    order = np.array([index[row] for row in labels])
    keeps = np.convolve(~clicks[order], np.ones(KEEPS), "valid") == KEEPS
    stop = int(np.argmax(keeps)) + KEEPS if keeps.any() else len(order)
    return looks, stop, int(harmful[order[stop:]].sum())


def reading_order(reader, planned, scores, index):
    """The rows of one push in the order in which a person reads them."""
    if reader == "by score":
        return sorted(planned.chosen + planned.random, key=lambda row: -scores[index[row]])
    queues = [list(planned.chosen), list(planned.random)]
    share, mixed = len(planned.random) / (len(planned.chosen) + len(planned.random)), []
    while queues[0] or queues[1]:
        due = share * (len(mixed) + 1) > len(planned.random) - len(queues[1]) + 0.5
        mixed.append((queues[due] or queues[not due]).pop(0))
    return mixed


def look(sampled, labels, harmful, clicks, index):
    """Number of rows read, truth, estimate and the naive interval."""
    left = left_harmful(sampled, labels)
    order = [index[row] for row in labels]
    truth = int(harmful.sum() - harmful[order].sum())
    last = clicks[order[-KEEPS:]]
    return len(labels), truth, left, *(bound * left.unread for bound in wilson(int(last.sum()), len(last)))


def wilson(harmful, count, z=1.96):
    """Wilson's 95 % interval of a share."""
    middle = (harmful + z**2 / 2) / (count + z**2)
    half = z / (count + z**2) * np.sqrt(harmful * (count - harmful) / count + z**2 / 4)
    return middle - half, middle + half


def summary(name, reader, wrong, harmful, reviews):
    """One row of the table."""
    total = int(harmful.sum())
    told = [[look for look in looks if look[2].estimate is not None] for looks, _, _ in reviews]
    covered = [all(left.low <= truth <= left.high for _, truth, left, _, _ in looks) for looks in told]
    at_look = [left.low <= truth <= left.high for looks in told for _, truth, left, _, _ in looks]
    naive = [low <= truth <= high for looks in told for _, truth, _, low, high in looks]
    bias = [left.estimate - truth for looks in told for read, truth, left, _, _ in looks if 180 < read <= 220]
    width = [left.high - left.low for looks in told for read, _, left, _, _ in looks if read == 200]

    def stops(share):
        """Reviews until at least this share is certain to be found, and whether it then was."""
        ends = [
            next(((n, t) for n, t, left, _, _ in looks if left.found_share >= share), looks[-1][:2]) for looks in told
        ]
        return float(np.mean([n for n, _ in ends])), sum(t > (1 - share) * total + 1e-9 for _, t in ends)

    (eighty, wrong_eighty), (most, wrong_most) = stops(0.8), stops(0.95)
    return {
        "rows": name,
        "people read": reader,
        "wrong clicks": wrong,
        "of": len(harmful),
        "harmful": total,
        "reviews covered at every look": sum(covered),
        "reviews": len(reviews),
        "looks covered": float(np.mean(at_look)),
        "error of the estimate after 200": float(np.mean(bias)),
        "width after 200": float(np.mean(width)),
        "read until 80 % certain": eighty,
        "wrongly": wrong_eighty,
        "read until 95 % certain": most,
        "wrongly at 95 %": wrong_most,
        "last 50: looks covered": float(np.mean(naive)),
        "50 keeps: read": float(np.mean([stop for _, stop, _ in reviews])),
        "50 keeps: share left": float(np.mean([left / total for *_, left in reviews])) if total else 0.0,
        "50 keeps: over 5 % left": sum(left > 0.05 * total for *_, left in reviews),
    }


def markdown(lines):
    head = list(lines[0])
    cells = [
        [
            f"{v:.3g}" if isinstance(v, float) and abs(v) < 10 else f"{v:.0f}" if isinstance(v, float) else str(v)
            for v in line.values()
        ]
        for line in lines
    ]
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *cells)])


def plot(kept, path):
    """Interval, estimate and truth over one review of each of some row sets."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for axes, ((name, reader, wrong), looks) in zip(figure.subplots(2, 2).flat, kept.items(), strict=False):
        told = [look for look in looks if look[2].estimate is not None]
        read = [look[0] for look in told]
        axes.fill_between(
            read,
            [left[2].low for left in told],
            [left[2].high for left in told],
            color="#99d5cf",
            label="95 % interval",
        )
        axes.plot(read, [left[2].estimate for left in told], color="#0f766e", label="estimate")
        axes.plot([left[0] for left in looks], [left[1] for left in looks], "--", color="#c2410c", label="truth")
        axes.set(title=f"{name}, {reader}, {wrong:.0%} wrong clicks", xlabel="rows read", ylabel="harmful rows left")
        axes.set_ylim(0, 450)
        axes.title.set_fontsize(9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--label", default="is_harmful")
    parser.add_argument("--reviews", type=int, default=50)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--wrong", type=float, nargs="+", default=[0.0, 0.05])
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    sets = {name: (lambda rng, given=given: synthetic(*given, rng)) for name, given in SYNTHETIC.items()}
    if arguments.rows:
        sets = real(arguments.rows, arguments.label) | sets
    lines, kept = [], {}
    cases = [(name, reader, wrong) for name in sets for reader in READERS for wrong in arguments.wrong]
    for name, reader, wrong in tqdm(cases):
        reviews = []
        for seed in range(arguments.reviews):
            rng = np.random.default_rng(seed)
            harmful, scores = sets[name](rng)
            reviews.append(review(harmful, scores, reader, budget=arguments.budget, wrong=wrong, rng=rng))
        lines.append(summary(name, reader, wrong, harmful, reviews))
        kept[name, reader, wrong] = reviews[0][0]
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "stopping.json").write_text(json.dumps(lines, indent=1))
    (arguments.output / "stopping.md").write_text(markdown(lines) + "\n", encoding="utf-8")
    shown = [case for case in SHOWN if case in kept] or list(kept)[:4]
    plot({case: kept[case] for case in shown}, arguments.output / "stopping.png")
    print(markdown(lines))


if __name__ == "__main__":
    main()
