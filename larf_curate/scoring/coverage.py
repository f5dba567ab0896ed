"""Coverage of a model's concepts by exemplars: six criteria, a greedy choice of exemplars, and uncovered rows.

Source: RACA, https://arxiv.org/abs/2602.02280. Its six criteria are defined on concepts, which are the principal
components of calibration states. The paper's absolute thresholds suit the states of its own models; here they are
standard deviations of each concept and quantiles of the calibration states.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from larf_curate.errors import InputError
from larf_curate.states import Vectors

MAX_CONCEPTS, STRONGEST, BINS, MAX_CLUSTERS = 64, 10, 10, 32
ACTIVE = 1.0
"""Absolute value, in standard deviations, from which a concept is active; half of it in a pair, as in the paper."""
EDGE = 0.9
"""Quantile of the distances of a cluster's calibration states to its centre, from which a state is at its edge."""


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of items that a set of exemplars covers, from 0 (none) to 1 (all); higher is better.

    In parentheses, the paper's abbreviation of the criterion.

    Args:
        concepts: Share of concepts that are active in some exemplar (SFC).
        strongest: Share of concepts that are among the 10 strongest of some exemplar (TKFC).
        bins: Share of the deciles of all concepts in which some exemplar's value is (FIC).
        clusters: Share of the clusters of calibration states that contain some exemplar (SCC).
        pairs: Share of pairs of concepts that are active together in some exemplar (PCC).
        edges: Share of clusters with some exemplar at their edge (CBC).
    """

    concepts: float
    strongest: float
    bins: float
    clusters: float
    pairs: float
    edges: float


CRITERIA = tuple(criterion.name for criterion in fields(Coverage))
"""Names of the criteria, in the order of `ConceptSpace.covered`."""


class ConceptSpace:
    """Concepts of calibration states (their principal components), with bins of each concept and clusters of states.

    Args:
        calibration: States of shape (n, d), n >= 3, such as the neutral and reference states of a profile.

    Raises:
        InputError: If there are fewer than 3 states.
    """

    def __init__(self, calibration: Vectors) -> None:
        if calibration.ndim != 2 or len(calibration) < 3:
            raise InputError(f"wanted calibration states of shape (3 or more, d), got {calibration.shape}")
        count = min(MAX_CONCEPTS, len(calibration) - 1, calibration.shape[1])
        # Whitened, so that every concept has standard deviation 1 and one threshold suits all.
        self._pca = PCA(count, whiten=True, svd_solver="full").fit(calibration)
        values = self._pca.transform(calibration)
        self._bin_edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], axis=0)
        self._clusters = _cluster(values)
        labels, distances = self._clusters.labels_, self._clusters.transform(values).min(axis=1)
        members = [distances[labels == label] for label in range(self._clusters.n_clusters)]
        self._edge_distances = np.array([np.quantile(part, EDGE) if len(part) else np.inf for part in members])

    def covered(self, states: Vectors) -> list[NDArray[np.bool_]]:
        """Return which items each state covers, by criterion.

        Args:
            states: Shape (n, d).

        Returns:
            One array of shape (n, items) per criterion, in the order of `CRITERIA`.
        """
        values = self._pca.transform(states)
        strength = np.abs(values)
        ranks = (-strength).argsort(axis=1).argsort(axis=1)
        bins = (values[:, None] >= self._bin_edges).sum(axis=1)
        in_bin = (bins[:, :, None] == np.arange(BINS)).reshape(len(states), -1)
        first, second = np.triu_indices(values.shape[1], k=1)
        half_active = strength >= ACTIVE / 2
        distances = self._clusters.transform(values)
        in_cluster = distances.argmin(axis=1)[:, None] == np.arange(len(self._edge_distances))
        at_edge = in_cluster & (distances >= self._edge_distances)
        in_pair = half_active[:, first] & half_active[:, second]
        return [strength >= ACTIVE, ranks < STRONGEST, in_bin, in_cluster, in_pair, at_edge]

    def coverage(self, exemplars: Vectors) -> Coverage:
        """Return what exemplars of shape (n, d), n >= 1, cover together."""
        shares = [float(part.any(axis=0).mean()) for part in self.covered(exemplars)]
        return Coverage(**dict(zip(CRITERIA, shares, strict=True)))


def greedy_cover(space: ConceptSpace, exemplars: Vectors, count: int) -> list[int]:
    """Choose exemplars with a high coverage greedily: each adds most to the mean of the criteria.

    The gain of an exemplar shrinks as others are chosen (the criteria are submodular), so the result is at least
    1 - 1/e, or 63 %, as good as the best choice of this size.

    Args:
        space: The concepts to cover.
        exemplars: States of shape (n, d).
        count: Maximum number of exemplars; fewer are chosen if no other adds anything.

    Returns:
        Indices of the chosen exemplars, in the order of choice.
    """
    by_criterion = space.covered(exemplars)
    covered = [np.zeros(items.shape[1], bool) for items in by_criterion]
    chosen: list[int] = []
    while len(chosen) < count:
        gains = np.sum([(items & ~old).mean(axis=1) for items, old in zip(by_criterion, covered, strict=True)], axis=0)
        best = int(gains.argmax())
        if gains[best] <= 0:
            break
        chosen.append(best)
        covered = [old | items[best] for items, old in zip(by_criterion, covered, strict=True)]
    return chosen


def _cluster(values: Vectors) -> KMeans:
    """Cluster states by k-means, with a fixed seed; k is at most the number of distinct states."""
    return KMeans(min(MAX_CLUSTERS, len(np.unique(values, axis=0))), n_init=1, random_state=0).fit(values)


@dataclass(frozen=True, kw_only=True)
class Uncovered:
    """A cluster of rows that contains no exemplar.

    Args:
        rows: Number of rows in the cluster.
        nearest: Indices of the rows nearest to its centre, nearest first.
    """

    rows: int
    nearest: tuple[int, ...]


def uncovered(states: Vectors, exemplars: Vectors, *, examples: int = 3) -> list[Uncovered]:
    """Find clusters of a dataset's rows that contain no exemplar, largest first.

    Args:
        states: States of the rows, shape (n, d).
        exemplars: States of the exemplars, shape (m, d).
        examples: Number of rows to return for each cluster.

    Raises:
        InputError: If the widths of the states differ.
    """
    if states.ndim != 2 or states.shape[1:] != exemplars.shape[1:]:
        raise InputError(f"wanted rows and exemplars of the same width, got {states.shape} and {exemplars.shape}")
    clusters = _cluster(states)
    labels, distances = clusters.labels_, clusters.transform(states)
    without_exemplars = set(labels.tolist()) - set(clusters.predict(exemplars).tolist())
    found = []
    for cluster in without_exemplars:
        members = np.flatnonzero(labels == cluster)
        nearest = members[np.argsort(distances[members, cluster], kind="stable")[:examples]]
        found.append(Uncovered(rows=len(members), nearest=tuple(nearest.tolist())))
    return sorted(found, key=lambda item: (-item.rows, item.nearest))
