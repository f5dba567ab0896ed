"""How far XSTest's unsafe prompts can be told from its safe ones by the state at the end of the prompt.

    python -m tests.benchmarks.contrast_prompts --model MODEL --layers 16,17,19 --data DATA --cache CACHE

``DATA`` holds ``prompts/xstest.csv``. Prints AUROC over the contrast pairs of ``refusals.py`` and over all prompts:

- of `erosion`, a discriminant at each block, summed;
- of one discriminant, and of a support vector machine with a Gaussian kernel, of the states of all blocks joined;
- of `erosion` fitted to a share of the unsafe references and borderline prompts, mean of ten draws: whether more of
  them would help;
- of discriminants fitted to XSTest itself, in five folds at random and by type of prompt, alone and with the
  references. These see labels of the set that they are judged on: no score to use, but what a state has to give.

Give more blocks with ``--layers`` to read more than a profile does by default.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.svm import SVC

from larf_curate.conversation.chat_template import Renderer
from larf_curate.signals import SIGNALS
from larf_curate.signals.discriminant import discriminant
from larf_curate.stats import auroc, rank_correlation
from tests.benchmarks.refusals import cached_profile, chat, contrast_pairs, read_csv

FOLDS, DRAWS = 5, 10


def prompt_states(profile, prompts):
    """Shape (n, layers, d)."""
    reader = profile.reader()
    items = Renderer(reader.tokenizer, reader.max_length)([chat(prompt, "OK.") for prompt in prompts])
    return reader([item.tokens for item in items], ("prompt",))["prompt"]


def joining(groups):
    """Joins the states of all blocks, scaled to the same variance, into one of shape (n, 1, layers * d)."""
    pooled = np.concatenate(groups)
    centre, scale = pooled.mean(axis=0), np.sqrt(pooled.var(axis=0).mean(axis=1))[:, None]
    return lambda states: ((states - centre) / scale).reshape(len(states), 1, -1)


def summed(groups):
    """A discriminant of the first group at each block, in units of the others' spread, summed over the blocks."""
    directions = discriminant(groups[0], groups[1:])
    unit = np.einsum("nld,ld->nl", np.concatenate(groups[1:]), directions).std(axis=0)
    return lambda states: (np.einsum("nld,ld->nl", states, directions) / unit).mean(axis=1)


def joined(groups):
    join = joining(groups)
    score = summed([join(group) for group in groups])
    return lambda states: score(join(states))


def kernel(groups):
    join = joining(groups)
    rows = join(np.concatenate(groups))[:, 0]
    machine = SVC(class_weight="balanced", gamma=1 / (3 * rows.shape[1]))
    machine.fit(rows, np.arange(len(rows)) < len(groups[0]))
    return lambda states: machine.decision_function(join(states)[:, 0])


def drawn(groups, share, seed):
    rng = np.random.default_rng(seed)
    unsafe, neutral, borderline = groups
    some = [group[rng.permutation(len(group))[: round(share * len(group))]] for group in (unsafe, borderline)]
    return summed([some[0], neutral, some[1]])


def folded(states, unsafe, fold, others=()):
    """Scores by discriminants of the other folds, 0 and 1 where their two sides are in the mean."""
    scores = np.zeros(len(states))
    for number in range(FOLDS):
        inside = fold == number
        sides = [states[~inside & unsafe], states[~inside & ~unsafe]]
        if others:
            sides = [np.concatenate([sides[0], others[0]]), sides[1], *others[1:]]
        score = summed(sides)
        low, high = np.mean([score(side).mean() for side in sides[1:]]), score(sides[0]).mean()
        scores[inside] = (score(states[inside]) - low) / (high - low)
    return scores


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=lambda text: [int(part) for part in text.split(",")], required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the profile")
    arguments = parser.parse_args()
    profile = cached_profile(arguments.cache, arguments.model, arguments.layers)
    rows = read_csv(arguments.data / "prompts/xstest.csv")
    states = prompt_states(profile, [row["prompt"] for row in rows])
    unsafe = np.array([row["label"] == "unsafe" for row in rows])
    paired = {row["prompt"] for row in contrast_pairs(arguments.data)}
    in_pair = np.array([row["prompt"] in paired for row in rows])
    everything = np.ones(len(rows), bool)
    length = np.array([len(row["prompt"]) for row in rows])
    refs = profile.references_for()
    groups = [refs.unsafe["prompt"], refs.neutral["prompt"], refs.borderline]
    kinds = [row["type"].removeprefix("contrast_") for row in rows]
    by_kind = np.unique(kinds, return_inverse=True)[1] % FOLDS
    at_random = np.random.default_rng(0).integers(0, FOLDS, len(rows))

    def line(name, *scores):
        cells = [[auroc(s[unsafe & part], s[~unsafe & part]) for s in scores] for part in (in_pair, everything)]
        follows = np.mean([rank_correlation(s[~unsafe & in_pair], length[~unsafe & in_pair]) for s in scores])
        print(f"| {name} | {np.mean(cells[0]):.3f} | {np.mean(cells[1]):.3f} | {follows:+.2f} |")

    print(f"{profile.summary()['model']}, blocks {', '.join(map(str, profile.layers))}\n")
    print("| | contrast pairs | all prompts | length within safe prompts |\n| --- | --- | --- | --- |")
    line("`erosion`", SIGNALS["erosion"].fit(refs)({"prompt": states}).mean(axis=1))
    line("blocks joined", joined(groups)(states))
    line("Gaussian kernel", kernel(groups)(states))
    for share in (0.25, 0.5, 0.75):
        line(f"{share:.0%} of the references", *(drawn(groups, share, seed)(states) for seed in range(DRAWS)))
    line("XSTest's own labels, folds at random", folded(states, unsafe, at_random))
    line("XSTest's own labels, folds by type", folded(states, unsafe, by_kind))
    line("references and XSTest's own labels, folds at random", folded(states, unsafe, at_random, groups))


if __name__ == "__main__":
    main()
