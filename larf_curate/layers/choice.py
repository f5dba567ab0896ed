"""Automatic choice of layers: by held-out separation of unsafe references, and by sensitivity of refusals."""

from collections.abc import Sequence, Sized
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from larf_curate.errors import ReferenceSetError
from larf_curate.signals.held_out import FOLDS, held_out
from larf_curate.signals.protocol import Fit, ReferenceStates
from larf_curate.states import States, Vectors

CHOSEN = 3
"""Number of layers that are chosen."""


def separation(fit: Fit, refs: ReferenceStates) -> Vectors:
    """Separation (d') of held-out unsafe references from held-out neutral rows and from held-out refusals, averaged.

    A signal that reads prompts alone cannot separate refusals from compliance: there only neutral rows count.

    Args:
        fit: Makes the signal.
        refs: At least 5 rows per side; both references of a pair are held out together.

    Returns:
        Shape (layers,), in pooled standard deviations; higher separates better, 0 not at all.

    Raises:
        ReferenceSetError: If a side has too few rows.
    """
    check_enough_rows(*(next(iter(side.values())) for side in (refs.unsafe, refs.safe, refs.neutral)))
    scores = held_out(fit, refs)
    distances = [_d_prime(scores.unsafe, others) for others in (scores.neutral, scores.safe)]
    return np.asarray(np.mean(distances, axis=0), np.float32)


def _d_prime(high: Vectors, low: Vectors) -> Vectors:
    """Difference of two means in pooled standard deviations, for each layer."""
    pooled = np.sqrt((high.var(axis=0) + low.var(axis=0)) / 2)
    return np.asarray((high.mean(axis=0) - low.mean(axis=0)) / np.where(pooled > 0, pooled, 1), np.float32)


def check_enough_rows(*sides: Sized) -> None:
    """Check that every side has enough rows for cross-validation.

    Raises:
        ReferenceSetError: If one has fewer than 5.
    """
    if (fewest := min(map(len, sides))) < FOLDS:
        raise ReferenceSetError(
            f"wanted at least {FOLDS} unsafe, safe and neutral references to choose layers, got {fewest}: "
            "add more, or give the layers (layers=[9, 14], --layers 9,14)"
        )


def best_layers(
    fits: Sequence[Fit],
    refs: ReferenceStates,
    blocks: int,
    *,
    read: Sequence[int] | None = None,
    sensitivity: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """Choose three layers of the middle half of the model by separation and, if given, sensitivity of refusals.

    The first quarter is excluded because it distinguishes words rather than intentions, and separates the references
    themselves all too well; the last quarter because it is about the next token.

    Args:
        fits: Make the signals. All count equally, each separation relative to its largest in the middle half: otherwise
            a signal that is good everywhere could select a layer where another one separates little.
        refs: States at the blocks that were read.
        blocks: Number of blocks of the model.
        read: Blocks that were read, among them the middle half; default: all.
        sensitivity: How much refusals depend on each block. If given, its `cumulative_share` counts as much as all
            separations together.

    Returns:
        The chosen blocks in rising order.
    """
    middle = middle_half(blocks)
    refs = _at(refs, [list(range(blocks) if read is None else read).index(block) for block in middle])
    scores = np.mean([_relative_to_largest(separation(fit, refs)) for fit in fits], axis=0)
    if sensitivity is not None:
        scores = scores + cumulative_share(sensitivity)[middle]
    # A stable sort: among equal blocks the first ones are chosen on every platform.
    return tuple(sorted(int(block) for block in middle[np.argsort(-scores, kind="stable")[:CHOSEN]]))


def _at(refs: ReferenceStates, layers: Sequence[int]) -> ReferenceStates:
    """States at some of their layers, by index: those of other layers would be scored for nothing."""

    def part(side: States) -> States:
        return {position: values[:, layers] for position, values in side.items()}

    borderline = None if refs.borderline is None else refs.borderline[:, layers]
    unsafe, safe, neutral = part(refs.unsafe), part(refs.safe), part(refs.neutral)
    return replace(refs, unsafe=unsafe, safe=safe, neutral=neutral, borderline=borderline)


def middle_half(blocks: int) -> NDArray[np.intp]:
    """Blocks that may be chosen: the model without its first and last quarter, at least one block."""
    return np.arange(blocks // 4, max(blocks - blocks // 4, blocks // 4 + 1))


def cumulative_share(sensitivity: Sequence[float]) -> Vectors:
    """Share of the total sensitivity that belongs to each block and those before it.

    The residual stream is the sum of what all blocks so far have written, so what the sensitive blocks write is read
    best after them, not at them.

    Args:
        sensitivity: How much refusals depend on each block; blocks that weaken refusals (negative values) count as 0.

    Returns:
        Shape (blocks,), rising from 0 to 1; 0 everywhere if refusals depend on no block.
    """
    above = np.maximum(np.asarray(sensitivity, np.float32), 0)
    return np.asarray(np.cumsum(above) / (above.sum() or 1))


def _relative_to_largest(values: Vectors) -> Vectors:
    """Values divided by the largest, negative ones as 0."""
    above = np.maximum(values, 0)
    return np.asarray(above / (above.max() or 1))
