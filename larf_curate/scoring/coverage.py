"""How much of what a model knows an exemplar set covers, which exemplars add most, and which rows lie beyond it.

Source: RACA, https://arxiv.org/abs/2602.02280: six criteria over the concepts of calibration states, which are their
principal components. The paper's thresholds are numbers for the states of its own models; here they are standard
deviations of each concept and shares of the calibration states.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from larf_curate.errors import InputError
from larf_curate.states import Vectors

CONCEPTS, TOP, BINS, CLUSTERS = 64, 10, 10, 32
ACTIVE = 1.0
"""Standard deviations to either side from which a concept counts as active; half, as in the paper, in a pair."""
EDGE = 0.9
"""Share of a cluster's calibration states that lie nearer to its centre than its edge."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares from 0 to 1 that a set of exemplars covers.

    Args:
        concepts: Concepts active in some exemplar (the paper's SFC).
        strongest: Concepts among the 10 strongest of some exemplar (TKFC).
        bins: Tenths of each concept's range that some exemplar lies in (FIC).
        clusters: Clusters of the calibration states that some exemplar lies in (SCC).
        pairs: Pairs of concepts active together in some exemplar (PCC).
        edges: Clusters at whose edge some exemplar lies (CBC).
    """

    concepts: float
    strongest: float
    bins: float
    clusters: float
    pairs: float
    edges: float


CRITERIA = tuple(criterion.name for criterion in fields(Coverage))


class ConceptSpace:
    """Concepts of calibration states, their ranges and clusters.

    Args:
        calibration: States of shape (n, d), n >= 3, such as the neutral and reference states of a profile.

    Raises:
        InputError: If there are fewer than 3.
    """

    def __init__(self, calibration: Vectors) -> None:
        if calibration.ndim != 2 or len(calibration) < 3:
            raise InputError(f"wanted calibration states of shape (3 or more, d), got {calibration.shape}")
        count = min(CONCEPTS, len(calibration) - 1, calibration.shape[1])
        self._pca = PCA(count, whiten=True, svd_solver="full").fit(calibration)
        values = self._pca.transform(calibration)
        self._edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], axis=0)
        self._clusters = _clustered(values)
        labels, distances = self._clusters.labels_, self._clusters.transform(values).min(axis=1)
        own = [distances[labels == label] for label in range(self._clusters.n_clusters)]
        self._edge = np.array([np.quantile(part, EDGE) if len(part) else np.inf for part in own])

    def covered(self, states: Vectors) -> list[NDArray[np.bool_]]:
        """What each of n states covers by each criterion, six arrays of shape (n, items)."""
        values = self._pca.transform(states)
        size = np.abs(values)
        ranks = (-size).argsort(axis=1).argsort(axis=1)
        bins = (values[:, None] >= self._edges).sum(axis=1)
        in_bin = (bins[:, :, None] == np.arange(BINS)).reshape(len(states), -1)
        one, other = np.triu_indices(values.shape[1], k=1)
        half = size >= ACTIVE / 2
        distances = self._clusters.transform(values)
        hit = distances.argmin(axis=1)[:, None] == np.arange(len(self._edge))
        at_edge = hit & (distances >= self._edge)
        return [size >= ACTIVE, ranks < TOP, in_bin, hit, half[:, one] & half[:, other], at_edge]

    def coverage(self, exemplars: Vectors) -> Coverage:
        """What exemplars of shape (n, d), n >= 1, cover together."""
        shares = [float(part.any(axis=0).mean()) for part in self.covered(exemplars)]
        return Coverage(**dict(zip(CRITERIA, shares, strict=True)))


def greedy(space: ConceptSpace, exemplars: Vectors, count: int) -> list[int]:
    """Places of the exemplars that cover most together, each the one that adds most to the mean of the criteria.

    Args:
        space: The concepts.
        exemplars: States of shape (n, d).
        count: How many; fewer if no other adds anything.
    """
    parts = space.covered(exemplars)
    have = [np.zeros(part.shape[1], bool) for part in parts]
    chosen: list[int] = []
    while len(chosen) < count:
        gains = np.sum([(part & ~old).mean(axis=1) for part, old in zip(parts, have, strict=True)], axis=0)
        best = int(gains.argmax())
        if gains[best] <= 0:
            break
        chosen.append(best)
        have = [old | part[best] for part, old in zip(parts, have, strict=True)]
    return chosen


def _clustered(values: Vectors) -> KMeans:
    """At most as many clusters as there are distinct states."""
    return KMeans(min(CLUSTERS, len(np.unique(values, axis=0))), n_init=1, random_state=0).fit(values)


@dataclass(frozen=True, kw_only=True)
class Uncovered:
    """A cluster of rows that no exemplar lies in.

    Args:
        rows: Number of its rows.
        nearest: Places of the rows nearest to its centre.
    """

    rows: int
    nearest: tuple[int, ...]


def uncovered(states: Vectors, exemplars: Vectors, *, named: int = 3) -> list[Uncovered]:
    """Clusters of a dataset that no exemplar lies in, the largest first.

    Args:
        states: Of the dataset's rows, shape (n, d).
        exemplars: Shape (m, d).
        named: Rows to name each cluster by.

    Raises:
        InputError: If the widths differ.
    """
    if states.ndim != 2 or states.shape[1:] != exemplars.shape[1:]:
        raise InputError(f"wanted rows and exemplars of one width, got {states.shape} and {exemplars.shape}")
    fitted = _clustered(states)
    labels, distances = fitted.labels_, fitted.transform(states)
    empty = set(labels.tolist()) - set(fitted.predict(exemplars).tolist())
    found = []
    for cluster in empty:
        members = np.flatnonzero(labels == cluster)
        nearest = members[np.argsort(distances[members, cluster], kind="stable")[:named]]
        found.append(Uncovered(rows=len(members), nearest=tuple(nearest.tolist())))
    return sorted(found, key=lambda item: (-item.rows, item.nearest))
