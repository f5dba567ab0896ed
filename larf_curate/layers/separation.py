"""Cross-validated separation of unsafe from safe references at each block; nothing is scaled or generated."""

from dataclasses import dataclass

import numpy as np

from larf_curate.conversation.truncation import Tokens
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError
from larf_curate.layers.subject import Subject
from larf_curate.models.hidden_states import StateReader
from larf_curate.states import Vectors
from larf_curate.stats import Floats, bootstrap_weights

FOLDS = 5


@dataclass(frozen=True, eq=False)
class BlockSeparation:
    """Held-out separation of unsafe and safe references at each block.

    Args:
        fisher: Signed Fisher ratio, shape (blocks,): higher separates better, negative if safe references project
            higher.
        auroc: Probability that an unsafe reference projects higher than a safe one, shape (blocks,).
        resampled: Fisher ratios of bootstrap samples of the references, shape (blocks, resamples).
    """

    fisher: Floats
    auroc: Floats
    resampled: Floats


def measure_separation(subject: Subject, references: ReferenceSet) -> BlockSeparation:
    """Measure the separation at every block, cross-validated over pairs.

    States are read at the last token, as by the LARF score, and normalised. The direction is the difference of the mean
    states in four fifths of the pairs; the remaining fifth is projected on it.

    Raises:
        ReferenceSetError: If a side has fewer references than there are folds.
    """
    sides = [reference_states(subject, references, side) for side in ("unsafe", "safe")]
    if (fewest := min(map(len, sides))) < FOLDS:
        raise ReferenceSetError(
            f"wanted at least {FOLDS} references per side for cross-validation, got {fewest}: add references"
        )
    unsafe, safe = held_out_projections(*sides)
    resampled = [bootstrap_weights(len(side)) for side in (unsafe, safe)]
    uniform = [np.full((len(side), 1), 1 / len(side)) for side in (unsafe, safe)]
    return BlockSeparation(
        fisher=_fisher(unsafe, safe, *uniform)[:, 0],
        auroc=_auroc(unsafe, safe),
        resampled=_fisher(unsafe, safe, *resampled),
    )


def reference_states(subject: Subject, references: ReferenceSet, side: str) -> Vectors:
    """Normalised states of one side of the references at the last token, shape (n, blocks, d).

    Raises:
        ReferenceSetError: If a reference cannot be tokenized, for instance because the chat template rejects it.
    """
    layers = tuple(range(len(subject.blocks)))
    # Without optimizations, whose exactness is not checked for a model that is already loaded.
    reader = StateReader(
        model=subject.model.base_model, tokenizer=subject.tokenizer, layers=layers, shortcuts=frozenset()
    )
    tokens = []
    for index, item in enumerate(subject.renderer(getattr(references, side))):
        if item.tokens is None:
            raise ReferenceSetError(f"{side} reference {index} cannot be used: {item.reason}")
        tokens.append(Tokens(item.tokens.ids, item.tokens.turns[-1:]))
    states = reader(tokens)["last"]
    return np.asarray(states / np.linalg.norm(states, axis=-1, keepdims=True))


def held_out_projections(unsafe: Vectors, safe: Vectors) -> tuple[Floats, Floats]:
    """Project each reference on the direction estimated from the other folds; row i of both sides shares a fold.

    Args:
        unsafe: States of shape (n, blocks, d).
        safe: States of shape (m, blocks, d).

    Returns:
        Projections of shape (n, blocks) and (m, blocks), scaled so that in the other folds the safe references have
        mean 0 and the unsafe ones mean 1: projections of different folds are comparable.
    """
    # Both answers to a prompt are held out together: otherwise the direction would be fitted to half of the pair.
    sides = (unsafe, safe)
    projected = [np.empty(side.shape[:2]) for side in sides]
    for fold in range(FOLDS):
        training = [np.arange(len(side)) % FOLDS != fold for side in sides]
        high, low = (side[mask].mean(0, dtype=np.float64) for side, mask in zip(sides, training, strict=True))
        direction = high - low
        squared_norm = np.maximum((direction**2).sum(-1), np.finfo(np.float64).tiny)
        for values, side, mask in zip(projected, sides, training, strict=True):
            values[~mask] = np.einsum("nld,ld->nl", side[~mask] - low, direction) / squared_norm
    return projected[0], projected[1]


def _fisher(unsafe: Floats, safe: Floats, unsafe_weights: Floats, safe_weights: Floats) -> Floats:
    """Signed Fisher ratio for each weighting: ``sign(d) d^2 / (var_unsafe + var_safe)``, d the difference of means.

    Args:
        unsafe: Projections of shape (n, blocks).
        safe: Projections of shape (m, blocks).
        unsafe_weights: Weights of the unsafe references, shape (n, weightings).
        safe_weights: Weights of the safe references, shape (m, weightings).

    Returns:
        Shape (blocks, weightings).
    """
    means, variances = zip(*(_moments(*pair) for pair in ((unsafe, unsafe_weights), (safe, safe_weights))), strict=True)
    difference = means[0] - means[1]
    return np.asarray(difference * np.abs(difference) / np.maximum(sum(variances), np.finfo(np.float64).tiny))


def _moments(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Weighted means and variances, each of shape (blocks, weightings)."""
    mean = values.T @ weights
    return mean, np.maximum((values.T**2) @ weights - mean**2, 0)


def _auroc(unsafe: Floats, safe: Floats) -> Floats:
    above = (unsafe[:, None] > safe[None]).mean((0, 1))
    return np.asarray(above + (unsafe[:, None] == safe[None]).mean((0, 1)) / 2)
