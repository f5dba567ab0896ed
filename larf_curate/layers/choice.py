"""Which layers separate unsafe references from ordinary rows and refusals best, and carry what refusals need."""

from collections.abc import Sequence, Sized

import numpy as np
from numpy.typing import NDArray

from larf_curate.errors import ReferenceSetError
from larf_curate.signals.held_out import FOLDS, held_out
from larf_curate.signals.protocol import Fit, ReferenceStates
from larf_curate.states import Vectors

CHOSEN = 3


def separation(fit: Fit, refs: ReferenceStates) -> Vectors:
    """Distance of held-out unsafe references from held-out neutral rows and from held-out refusals, the mean of both.

    A signal that reads prompts alone cannot tell refusals from compliance: then neutral rows decide.

    Args:
        fit: Makes the signal.
        refs: At least 5 rows a side, all paired references together in a fold.

    Returns:
        Shape (layers,), in pooled standard deviations (d'); higher separates better.

    Raises:
        ReferenceSetError: If a side has too few rows.
    """
    check_enough(*(next(iter(side.values())) for side in (refs.unsafe, refs.safe, refs.neutral)))
    scores = held_out(fit, refs)
    distances = [_distance(scores.unsafe, others) for others in (scores.neutral, scores.safe)]
    return np.asarray(np.mean(distances, axis=0), np.float32)


def _distance(high: Vectors, low: Vectors) -> Vectors:
    """Difference of two means in pooled standard deviations, layer by layer."""
    pooled = np.sqrt((high.var(axis=0) + low.var(axis=0)) / 2)
    return np.asarray((high.mean(axis=0) - low.mean(axis=0)) / np.where(pooled > 0, pooled, 1), np.float32)


def check_enough(*sides: Sized) -> None:
    """Refuse sides with too few rows to leave some out.

    Raises:
        ReferenceSetError: If one has fewer than 5.
    """
    if (fewest := min(map(len, sides))) < FOLDS:
        raise ReferenceSetError(
            f"wanted at least {FOLDS} unsafe, safe and neutral references to choose layers by, got {fewest}: "
            "give more, or name the layers (layers=[9, 14], --layers 9,14)"
        )


def best_layers(
    fits: Sequence[Fit], refs: ReferenceStates, blocks: int, *, sensitivity: Sequence[float] | None = None
) -> tuple[int, ...]:
    """The three layers among the middle half of the model that separate best by all of some signals and carry refusals.

    The first quarter is left out because it tells words apart, not intentions, and separates one's own references all
    too well; the last because it is about the next token.

    Args:
        fits: Make the signals. All count alike, each separation as a share of its largest in the middle half: a layer
            where one of two axes says little is not chosen because the other is good everywhere.
        refs: States at every block of the model.
        blocks: Number of blocks.
        sensitivity: How much refusals depend on each block. If given, `carried` of it counts as much as the separations
            together.
    """
    middle = middle_half(blocks)
    scores = np.mean([_shares(separation(fit, refs)[middle]) for fit in fits], axis=0)
    if sensitivity is not None:
        scores = scores + carried(sensitivity)[middle]
    return tuple(sorted(int(block) for block in middle[np.argsort(-scores, kind="stable")[:CHOSEN]]))


def middle_half(blocks: int) -> NDArray[np.intp]:
    """The blocks that may be chosen, at least one."""
    return np.arange(blocks // 4, max(blocks - blocks // 4, blocks // 4 + 1))


def carried(sensitivity: Sequence[float]) -> Vectors:
    """Share of what refusals depend on that the state at each block has behind it.

    A state is the sum of what its block and all before it wrote, so what the sensitive blocks wrote is read best behind
    them, not at them.

    Args:
        sensitivity: How much refusals depend on each block; blocks that weaken refusals count as 0.

    Returns:
        Shape (blocks,), rising from 0 to 1; 0 everywhere if refusals depend on no block.
    """
    above = np.maximum(np.asarray(sensitivity, np.float32), 0)
    return np.asarray(np.cumsum(above) / (above.sum() or 1))


def _shares(values: Vectors) -> Vectors:
    """Values as shares of the largest, those below zero as 0."""
    above = np.maximum(values, 0)
    return np.asarray(above / (above.max() or 1))
