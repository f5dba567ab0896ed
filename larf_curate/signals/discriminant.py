"""Shrunken linear discriminants between groups of reference states, one direction per layer.

The difference of two means points along whatever varies most between rows: length, register, language. A discriminant
divides it by the covariance within the groups, so that directions in which rows of one kind differ anyway count less.
From a few hundred rows in as many dimensions that covariance is not known well enough to be inverted, so half of it is
replaced by its mean variance in all directions.

Source: Fisher's linear discriminant with the covariance shrunk as by Friedman 1989,
https://doi.org/10.1080/01621459.1989.10478752.
"""

from collections.abc import Sequence

import numpy as np

from larf_curate.states import Vectors

SHRINKAGE = 0.5
"""Share of the covariance within groups that is replaced by its mean variance."""


def discriminant(high: Vectors, low: Sequence[Vectors], *, others: Sequence[Vectors] = ()) -> Vectors:
    """Direction of each layer along which one group of states is apart from others; its length is arbitrary.

    ``w = ((1 - s) C + s tr(C) / d I)⁻¹ (mean(high) - mean over low of their means)``, s = `SHRINKAGE`, C the covariance
    within all groups.

    Args:
        high: States that project high, shape (n, layers, d), n >= 1.
        low: Groups of states that project low, each of shape (m, layers, d), m >= 1.
        others: Groups that only show how rows of one kind vary.

    Returns:
        Shape (layers, d), float32.
    """
    difference = high.mean(axis=0) - np.mean([group.mean(axis=0) for group in low], axis=0)
    centred = np.concatenate([group - group.mean(axis=0) for group in (high, *low, *others)])
    directions = [_solve(centred[:, i], difference[i]) for i in range(len(difference))]
    return np.asarray(directions, np.float32)


def _solve(centred: Vectors, difference: Vectors) -> Vectors:
    """``(C + ridge I)⁻¹ difference`` up to a factor, by Woodbury's identity: rows are fewer than dimensions.

    Rows without any variance leave the difference as it is.
    """
    rows = centred.astype(np.float64)
    count, width = rows.shape
    ridge = SHRINKAGE / (1 - SHRINKAGE) * (rows**2).sum() / width  # of the sum of squares, hence not divided by count
    if ridge == 0:
        return difference
    inner = rows @ rows.T + ridge * np.eye(count)
    return np.asarray(difference - rows.T @ np.linalg.solve(inner, rows @ difference))
