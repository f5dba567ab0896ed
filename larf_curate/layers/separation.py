"""How well each block tells unsafe from safe references that it was not fitted on; nothing is scaled or generated."""

from dataclasses import dataclass

import numpy as np

from larf_curate.conversation.chat_template import Renderer, Tokens
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError
from larf_curate.layers.subject import Subject
from larf_curate.models.hidden_states import StateReader
from larf_curate.states import Vectors
from larf_curate.stats import Floats, bootstrap_weights

FOLDS = 5


@dataclass(frozen=True, eq=False)
class Separation:
    """Held-out separation of unsafe and safe references.

    Args:
        fisher: Fisher ratio of each block, negative where safe references project higher, shape (blocks,).
        auroc: Probability that an unsafe reference projects higher than a safe one, shape (blocks,).
        resampled: Fisher ratios over bootstrap samples of the pairs, shape (blocks, resamples).
    """

    fisher: Floats
    auroc: Floats
    resampled: Floats


def separate(subject: Subject, references: ReferenceSet) -> Separation:
    """Measure the separation at every block, cross-validated over pairs.

    States are read at the last token, as the LARF score reads them, and brought to length 1. The direction is the
    difference of the two means in four fifths of the pairs; the last fifth is projected on it.

    Raises:
        ReferenceSetError: If a side has fewer references than there are folds.
    """
    sides = [reference_states(subject, references, side) for side in ("unsafe", "safe")]
    if min(map(len, sides)) < FOLDS:
        raise ReferenceSetError(f"wanted at least {FOLDS} references a side for cross-validation, got {len(sides[1])}")
    unsafe, safe = held_out(*sides)
    draws = [bootstrap_weights(len(side)) for side in (unsafe, safe)]
    plain = [np.full((len(side), 1), 1 / len(side)) for side in (unsafe, safe)]
    return Separation(
        fisher=_fisher(unsafe, safe, *plain)[:, 0], auroc=_auroc(unsafe, safe), resampled=_fisher(unsafe, safe, *draws)
    )


def reference_states(subject: Subject, references: ReferenceSet, side: str) -> Vectors:
    """States of one side of the references at the last token of every block, shape (n, blocks, d), of length 1.

    Raises:
        ReferenceSetError: If the model's chat template refuses one.
    """
    layers = tuple(range(len(subject.blocks)))
    reader = StateReader(
        model=subject.model.base_model, tokenizer=subject.tokenizer, layers=layers, shortcuts=frozenset()
    )
    tokens = []
    for index, item in enumerate(Renderer(subject.tokenizer, subject.window)(getattr(references, side))):
        if item.tokens is None:
            raise ReferenceSetError(f"{side} reference {index} cannot be used: {item.reason}")
        tokens.append(Tokens(item.tokens.ids, item.tokens.turns[-1:]))
    states = reader(tokens)["last"]
    return np.asarray(states / np.linalg.norm(states, axis=-1, keepdims=True))


def held_out(unsafe: Vectors, safe: Vectors) -> tuple[Floats, Floats]:
    """Project each reference on the direction that the other folds give; row i of both sides is in the same fold.

    Args:
        unsafe: Shape (n, blocks, d).
        safe: Shape (m, blocks, d).

    Returns:
        Projections of shape (n, blocks) and (m, blocks), brought to the scale of the other folds: their safe
        references have mean 0, their unsafe ones mean 1.
    """
    sides = (unsafe, safe)
    projected = [np.empty(side.shape[:2]) for side in sides]
    for fold in range(FOLDS):
        outside = [np.arange(len(side)) % FOLDS != fold for side in sides]
        high, low = (side[mask].mean(0, dtype=np.float64) for side, mask in zip(sides, outside, strict=True))
        direction = high - low
        length = np.maximum((direction**2).sum(-1), np.finfo(np.float64).tiny)
        for values, side, mask in zip(projected, sides, outside, strict=True):
            values[~mask] = np.einsum("nld,ld->nl", side[~mask] - low, direction) / length
    return projected[0], projected[1]


def _fisher(unsafe: Floats, safe: Floats, unsafe_weights: Floats, safe_weights: Floats) -> Floats:
    """Squared difference of the means over the sum of the variances, with the difference's sign, for each weighting."""
    means, variances = zip(*(_moments(*pair) for pair in ((unsafe, unsafe_weights), (safe, safe_weights))), strict=True)
    difference = means[0] - means[1]
    return np.asarray(difference * np.abs(difference) / np.maximum(sum(variances), np.finfo(np.float64).tiny))


def _moments(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    mean = values.T @ weights
    return mean, np.maximum((values.T**2) @ weights - mean**2, 0)


def _auroc(unsafe: Floats, safe: Floats) -> Floats:
    above = (unsafe[:, None] > safe[None]).mean((0, 1))
    return np.asarray(above + (unsafe[:, None] == safe[None]).mean((0, 1)) / 2)
