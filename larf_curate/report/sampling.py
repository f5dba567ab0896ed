"""Which rows a page shows: all of few, and of many a sample by a fixed rule, so that the page stays small."""

import numpy as np
from numpy.typing import NDArray

from larf_curate.report.statistics import Statistics

TABLE_ROWS = 10_000
"""Maximum number of rows in the table of a page."""
UNSCORED_ROWS = 1000
"""Maximum number of rows without a score among them."""
MAP_ROWS = 1500
"""Maximum number of rows that are drawn as points with a text."""

Indices = NDArray[np.intp]


def table_sample(statistics: Statistics, count: int = TABLE_ROWS) -> Indices:
    """Indices of the rows in the table, in row order.

    All rows if they fit. Else the first `UNSCORED_ROWS` rows without a score at most; of the other places, half are for
    the rows with the highest scores, and half for rows spread evenly over the ranks of the rest.
    """
    if len(statistics.scores) <= count:
        return np.arange(len(statistics.scores))
    unscored = statistics.unscored()[: min(UNSCORED_ROWS, count // 10)]
    return np.sort(np.concatenate([unscored, score_sample(statistics, count - len(unscored))]))


def score_sample(statistics: Statistics, count: int) -> Indices:
    """Indices of at most ``count`` rows with a score: half with the highest ones, half spread evenly over the ranks."""
    scored = np.flatnonzero(statistics.scored)
    if len(scored) <= count:
        return scored
    order = scored[np.argsort(-statistics.scores[scored], kind="stable")]
    top = (count + 1) // 2
    spread = np.linspace(top, len(order) - 1, count - top).round().astype(np.intp)
    return np.concatenate([order[:top], order[spread]])
