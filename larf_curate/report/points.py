"""Plots of single rows, each with its text: map of the stored states, axes, and guard model against score."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from larf_curate.columns import states_of
from larf_curate.diagnosis.guard import UNSAFE
from larf_curate.errors import ProfileMismatchError
from larf_curate.extras import require
from larf_curate.profile import SafetyProfile
from larf_curate.report.plots import Plot, Points, levels_of, scatter
from larf_curate.report.statistics import Floats
from larf_curate.report.table import AXES, TableRow
from larf_curate.states import Vectors

Projection = Literal["pca", "umap"]
"""How states are drawn in a plane."""
MIN_POINTS = 3
"""Fewest rows with a state of which a map is drawn."""


def state_map(
    dataset: Dataset,
    rows: Sequence[TableRow],
    scores: Floats,
    *,
    profile: SafetyProfile | None,
    texts: Mapping[str, str],
    projection: Projection = "pca",
) -> tuple[Plot, str] | None:
    """Map of the stored states of some rows, with the unsafe references if there is a profile.

    Args:
        dataset: Scored rows.
        rows: The rows to draw; only their states are read.
        scores: Scores of all rows, for the colours.
        profile: The profile that scored the rows.
        texts: Texts of the references by exemplar id.
        projection: ``pca`` (principal components), or ``umap``, which needs the library umap-learn.

    Returns:
        The plot, and how it was made; None if fewer than `MIN_POINTS` rows have a state, or all are equal.

    Raises:
        ProfileMismatchError: If the states of the rows and of the profile differ in width.
        MissingExtraError: If umap-learn is not installed.
    """
    states = states_of(dataset.select([row.position for row in rows]))
    if states is None:
        return None
    usable = np.isfinite(states).all(axis=1) & np.array([row.score is not None for row in rows], np.bool_)
    if usable.sum() < MIN_POINTS or not _spreads(states[usable]):
        return None
    drawn = [row for row, use in zip(rows, usable, strict=True) if use]
    exemplars = np.zeros((0, states.shape[1]), np.float32) if profile is None else _exemplars(profile, states)
    places, made = _project(np.concatenate([states[usable], exemplars]), projection)
    rest = places[len(drawn) :]
    titles = [texts.get(f"reference-{index}", f"reference-{index}") for index in range(len(rest))]
    plot = scatter(
        "map",
        _points(places[: len(drawn)], drawn, scores),
        xlabel="first component" if projection == "pca" else "",
        ylabel="second component" if projection == "pca" else "",
        crosses=(rest[:, 0], rest[:, 1], [f"unsafe reference: {title}"[:200] for title in titles]) if titles else None,
    )
    return plot, made


def _spreads(states: Vectors) -> bool:
    """Whether states differ in the two dimensions of a plane at least."""
    return int((states != states[0]).any(axis=0).sum()) >= 2


def _exemplars(profile: SafetyProfile, states: Vectors) -> Vectors:
    """States of the unsafe references at the profile's first layer."""
    if profile.width != states.shape[1]:
        raise ProfileMismatchError(
            f"wanted states of the profile's width {profile.width}, got {states.shape[1]}: give the profile that "
            "scored the rows"
        )
    return profile.states["unsafe"]["last"][:, 0]


def _project(states: Vectors, projection: Projection) -> tuple[Floats, str]:
    """Coordinates of states in a plane, shape (n, 2), and a description."""
    if projection == "umap":
        umap = require("umap", extra="umap")
        return np.asarray(umap.UMAP(random_state=0).fit_transform(states), np.float64), "UMAP of stored states"
    components = PCA(n_components=2, svd_solver="randomized", random_state=0).fit(states)
    shares = components.explained_variance_ratio_
    made = f"principal components of stored states, {shares[0]:.0%} and {shares[1]:.0%} of the variance"
    return np.asarray(components.transform(states), np.float64), made


def axes_plot(rows: Sequence[TableRow], scores: Floats) -> Plot | None:
    """Compliance against erosion of some rows; None if none has both axes."""
    drawn = [row for row in rows if row.score is not None and np.isfinite(row.axes[:2]).all()]
    if not drawn:
        return None
    places = np.array([row.axes[:2] for row in drawn], np.float64)
    titles = [_title(row, f"harmful {row.axes[2]:.1f}") for row in drawn]
    points = Points(x=places[:, 0], y=places[:, 1], titles=titles, levels=_levels(drawn, scores))
    return scatter("axes", points, xlabel=AXES[0], ylabel=AXES[1])


def guard_plot(rows: Sequence[TableRow], scores: Floats, threshold: float | None) -> Plot | None:
    """A guard model's probability against the score of some rows; None if it judged none of them."""
    drawn = [row for row in rows if row.score is not None and row.guard is not None and np.isfinite(row.guard)]
    if not drawn:
        return None
    places = np.array([(row.score, row.guard) for row in drawn], np.float64)
    lines = {"y": UNSAFE} | ({} if threshold is None else {"x": threshold})
    label = "guard model: answer unsafe"
    return scatter("guard", _points(places, drawn, scores), xlabel="score", ylabel=label, lines=lines)


def _points(places: Floats, rows: Sequence[TableRow], scores: Floats) -> Points:
    titles = [_title(row) for row in rows]
    return Points(x=places[:, 0], y=places[:, 1], titles=titles, levels=_levels(rows, scores))


def _levels(rows: Sequence[TableRow], scores: Floats) -> NDArray[np.int64]:
    return levels_of(np.array([row.score for row in rows], np.float64), scores[np.isfinite(scores)])


def _title(row: TableRow, *notes: str) -> str:
    """Text of a point: its score and the beginning of its row."""
    return f"{', '.join([f'score {row.score:.3f}', *notes])}: {row.text[:120]}"
