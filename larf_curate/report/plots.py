"""Plots of a report: SVG for the page, or files of their own.

On the page they take colours and font from it and have no style attributes: the page's Content-Security-Policy blocks
inline styles, so matplotlib's are rewritten as presentation attributes. Placeholder colours become CSS variables, so
that the same SVG works in light and dark mode.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from larf_curate.files import atomic_path
from larf_curate.report.excerpts import visible
from larf_curate.report.statistics import Floats, Statistics

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_DROPPED = {f"{_SVG}metadata", f"{_SVG}style"}


@dataclass(frozen=True, kw_only=True)
class Look:
    """Colours of a plot.

    Args:
        ink: Colour of text.
        line: Colour of axes and grid.
        score: Colour of rows that are not flagged.
        flagged: Colour of flagged rows.
        levels: Colours of rows by score, the lowest first; see `SHARES`.
    """

    ink: str
    line: str
    score: str
    flagged: str
    levels: tuple[str, ...]


# Placeholders that no other part of a drawing uses; `_VARIABLES` maps them to the colours of the page.
PAGE = Look(
    ink="#010203",
    line="#010204",
    score="#010205",
    flagged="#010206",
    levels=("#010211", "#010212", "#010213", "#010214", "#010215"),
)
"""Look of a plot on the page."""
FILE = Look(
    ink="#555c63",
    line="#d5d6d1",
    score="#3f608f",
    flagged="#b4402f",
    levels=("#8298b8", "#4f74ab", "#a98044", "#c9612f", "#9c2416"),
)
"""Look of a plot in a file: the light colours of the page."""
_VARIABLES = {
    PAGE.ink: "var(--muted)",
    PAGE.line: "var(--line)",
    PAGE.score: "var(--score)",
    PAGE.flagged: "var(--flagged)",
} | {colour: f"var(--c{level})" for level, colour in enumerate(PAGE.levels)}
SHARES = (0.5, 0.8, 0.95, 0.99)
"""Quantiles of the scores at which the colour of a point changes."""
FORMATS = ("svg", "png")
"""Formats of the files of a plot."""


def _style(look: Look) -> dict[Any, Any]:
    """Settings of matplotlib."""
    return {
        "svg.fonttype": "none",
        "font.size": 8.5,
        "text.color": look.ink,
        "axes.labelcolor": look.ink,
        "axes.edgecolor": look.line,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "grid.color": look.line,
        "grid.linewidth": 0.6,
        "xtick.color": look.line,
        "ytick.color": look.line,
        "xtick.labelcolor": look.ink,
        "ytick.labelcolor": look.ink,
        "ytick.major.size": 0,
        "xtick.major.size": 3,
    }


_BINS = 40
_MAX_POINTS = 2000  # beyond that a density plot: each point is an SVG element, so the page would grow with the dataset
_PART = 100_000  # rows whose hexagons are counted together
_PERCENTILES = (5, 25, 50, 75, 95)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot that is drawn when it is needed, on the page or into a file.

    Args:
        name: Name of the plot and of its files; unique in a page.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis.
        draw: Draws on axes in a look.
        titles: Texts of single points, by the group id (``gid``) of their collection, in drawing order.
    """

    name: str
    xlabel: str
    ylabel: str
    draw: Callable[[Axes, Look], None]
    titles: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def svg(self) -> Markup:
        """The plot as an inline SVG element, labelled by the element with the id ``NAME-caption``."""
        stream = io.BytesIO()
        self._save(stream, "svg", PAGE)
        return _for_page(stream.getvalue(), self.name, self.titles)

    def write(self, folder: Path) -> list[Path]:
        """Write the plot as ``NAME.svg`` and ``NAME.png``; earlier files are replaced.

        Args:
            folder: Folder of the files; it is created if needed.

        Returns:
            Paths of the files.
        """
        paths = [folder / f"{self.name}.{suffix}" for suffix in FORMATS]
        for path in paths:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                self._save(file, path.suffix[1:], FILE)
        return paths

    def _save(self, stream: Any, suffix: str, look: Look) -> None:  # noqa: ANN401  a binary file
        # The fixed salt makes element ids the same in every run, and those of two plots different.
        with rc_context(_style(look) | {"svg.hashsalt": self.name}):
            figure = Figure(figsize=(4.6, 2.7), layout="constrained")
            axes = figure.subplots()
            self.draw(axes, look)
            # Labels may be names of folders, with dollar signs and control characters.
            axes.set_xlabel(str(visible(self.xlabel)), parse_math=False)
            axes.set_ylabel(str(visible(self.ylabel)), parse_math=False)
            if look is FILE:
                figure.set_facecolor("white")
            metadata = {"Date": None} if suffix == "svg" else {"Software": None}
            with warnings.catch_warnings():
                # Matplotlib's fonts lack many scripts; in SVG, text stays text, for which others have a font.
                warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
                figure.savefig(stream, format=suffix, dpi=200, metadata=metadata)


def score_histogram(statistics: Statistics, threshold: float | None) -> Plot:
    """Histogram of the scores, flagged rows stacked on top of the others."""

    def draw(axes: Axes, look: Look) -> None:
        scores, scored, flagged = statistics.scores, statistics.scored, statistics.flagged_scored
        edges = np.histogram_bin_edges([], bins=_BINS, range=_limits(scores, scored))
        counts = [np.histogram(scores[rows], bins=edges)[0] for rows in (scored & ~flagged, flagged)]
        colours = [look.score, look.flagged]
        # Counts, since matplotlib copies the values of all rows several times.
        axes.hist([edges[:-1]] * 2, list(edges), weights=counts, stacked=True, color=colours, rwidth=0.88)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if threshold is not None:
            _mark_threshold(axes, look, threshold, left=threshold > edges.mean())

    return Plot(name="histogram", xlabel="score", ylabel="rows", draw=draw)


def _mark_threshold(axes: Axes, look: Look, threshold: float, *, left: bool) -> None:
    """Draw a labelled vertical line."""
    axes.axvline(threshold, color=look.ink, linewidth=0.9, linestyle=(0, (3, 2)))
    axes.annotate(
        f"threshold {threshold:.3f}",
        (threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if left else 4, -2),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
    )


def score_against_length(statistics: Statistics, threshold: float | None) -> Plot:
    """Score against length: a scatter plot for few rows, a hexagonal density plot for many."""

    def draw(axes: Axes, look: Look) -> None:
        known = statistics.scored & np.isfinite(statistics.lengths)
        flagged = known & statistics.flagged_scored
        lengths = np.maximum(statistics.lengths, 1)  # a logarithmic axis has no 0
        axes.set_xscale("log")
        if known.sum() <= _MAX_POINTS:
            for which, color, alpha in ((known & ~flagged, look.score, 0.45), (flagged, look.flagged, 0.85)):
                axes.scatter(lengths[which], statistics.scores[which], s=9, color=color, alpha=alpha, linewidths=0)
        else:
            _density(axes, look, lengths, statistics.scores, known, xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        if threshold is not None:
            axes.axhline(threshold, color=look.ink, linewidth=0.9, linestyle=(0, (3, 2)))

    return Plot(name="length", xlabel="characters in the conversation", ylabel="score", draw=draw)


def layer_distributions(statistics: Statistics, labels: Sequence[str]) -> Plot:
    """Scores at each layer: median as a curve, interquartile range and middle 90 %, flagged rows beside the others."""

    def draw(axes: Axes, look: Look) -> None:
        flagged = statistics.flagged_scored
        groups = [(statistics.scored & ~flagged, look.score), (flagged, look.flagged)]
        groups = [(rows, color) for rows, color in groups if rows.any()]
        # Up to 8 layers there is room for wide bars; beyond that the bars of adjacent layers would touch.
        thickness = 7.0 if len(labels) <= 8 else 3.0
        for index, (rows, color) in enumerate(groups):
            x = np.arange(len(labels)) + (index - (len(groups) - 1) / 2) * (0.18 if len(labels) <= 8 else 0.4)
            layers = statistics.layer_scores.T
            low, first, median, third, high = np.transpose([np.nanpercentile(s[rows], _PERCENTILES) for s in layers])
            axes.vlines(x, low, high, color=color, linewidth=1)
            axes.vlines(x, first, third, color=color, linewidth=thickness)
            axes.plot(x, median, "_", markersize=1.8 * thickness, color=color, markeredgewidth=1.6)
            axes.plot(x, median, color=color, linewidth=0.9)
        step = -(-len(labels) // 16)  # rounded up: at most 16 tick labels fit
        axes.set_xticks(range(0, len(labels), step), labels[::step])
        axes.set_xlim(-0.6, len(labels) - 0.4)

    return Plot(name="layers", xlabel="block of the model", ylabel="score at the block", draw=draw)


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points of a scatter plot.

    Args:
        x: Shape (n,), finite.
        y: Shape (n,), finite.
        titles: A text for each point.
        levels: Level of each point's colour, shape (n,), from `levels_of`.
    """

    x: Floats
    y: Floats
    titles: Sequence[str]
    levels: NDArray[np.int64]


def levels_of(scores: Floats, among: Floats) -> NDArray[np.int64]:
    """Level in [0, 4] of each score: how many of the quantiles at `SHARES` of the scores ``among`` it reaches."""
    return np.searchsorted(np.quantile(among, SHARES), scores, side="right").astype(np.int64)


def scatter(
    name: str,
    points: Points,
    *,
    xlabel: str,
    ylabel: str,
    crosses: tuple[Floats, Floats, Sequence[str]] | None = None,
    lines: Mapping[str, float] | None = None,
) -> Plot:
    """Points coloured by score, the highest on top.

    Args:
        name: Name of the plot.
        points: The points.
        xlabel: Label of the horizontal axis.
        ylabel: Label of the vertical axis.
        crosses: Coordinates and texts of further points, drawn as crosses.
        lines: Places of dashed lines: ``x`` of a vertical and ``y`` of a horizontal one.
    """
    order = np.argsort(points.levels, kind="stable")
    titles = {"points": [points.titles[index] for index in order.tolist()]}
    if crosses is not None:
        titles["crosses"] = list(crosses[2])

    def draw(axes: Axes, look: Look) -> None:
        colours = [look.levels[level] for level in points.levels[order].tolist()]
        axes.scatter(points.x[order], points.y[order], s=10, c=colours, linewidths=0, gid="points")
        if crosses is not None:
            axes.scatter(*crosses[:2], s=16, c=look.ink, marker="x", linewidths=0.9, gid="crosses")
        for place, line in (("x", axes.axvline), ("y", axes.axhline)):
            if place in (lines or {}):
                line((lines or {})[place], color=look.ink, linewidth=0.9, linestyle=(0, (3, 2)))

    return Plot(name=name, xlabel=xlabel, ylabel=ylabel, draw=draw, titles=titles)


def score_against_score(first: Floats, second: Floats, *, labels: tuple[str, str]) -> Plot:
    """Scores of the same rows by two profiles: a scatter plot for few rows, a hexagonal density plot for many.

    Args:
        first: Shape (n,), NaN where a row has no score.
        second: Shape (n,), of the same rows.
        labels: Labels of the axes.
    """

    def draw(axes: Axes, look: Look) -> None:
        known = np.isfinite(first) & np.isfinite(second)
        if known.sum() <= _MAX_POINTS:
            axes.scatter(first[known], second[known], s=9, color=look.score, alpha=0.45, linewidths=0)
        else:
            _density(axes, look, first, second, known)

    return Plot(name="scores", xlabel=labels[0], ylabel=labels[1], draw=draw)


def _density(axes: Axes, look: Look, x: Floats, y: Floats, known: NDArray[np.bool_], *, xscale: str = "linear") -> None:
    """Draw hexagons whose opacity grows with the logarithm of their number of rows."""
    corners = np.array([_limits(x, known), _limits(y, known)])

    def drawn(rows: slice) -> PolyCollection:
        # With the corners, all parts have the same hexagons; rows with NaN are left out.
        horizontal, vertical = np.concatenate([corners, [x[rows], y[rows]]], axis=1)
        return axes.hexbin(horizontal, vertical, gridsize=36, xscale=xscale, linewidths=0)  # type: ignore[arg-type]

    hexagons = drawn(slice(0))
    only_corners = np.asarray(hexagons.get_array())
    counts = np.zeros_like(only_corners)
    # Counted in parts, since matplotlib needs 20 times the memory of the values.
    for start in range(0, len(y), _PART):
        part = drawn(slice(start, start + _PART))
        counts += np.asarray(part.get_array()) - only_corners
        part.remove()
    hexagons.set_array(None)  # otherwise a colour map would override the colours set below
    _keep(hexagons, counts > 0)
    counts = counts[counts > 0]
    # Logarithmic: most rows are in a few hexagons, and the others would be invisible.
    alphas = 0.15 + 0.85 * np.log1p(counts) / np.log1p(counts.max())
    hexagons.set_facecolor([(*to_rgba(look.score)[:3], alpha) for alpha in alphas])


def _keep(hexagons: PolyCollection, shown: NDArray[np.bool_]) -> None:
    """Remove the other hexagons of a `hexbin`: offsets of one path or, in Matplotlib 3.9, a path for each."""
    if len(paths := hexagons.get_paths()) == 1:
        hexagons.set_offsets(np.asarray(hexagons.get_offsets())[shown])
    else:  # without the point that closes a path
        hexagons.set_verts([np.asarray(paths[index].vertices)[:-1] for index in np.flatnonzero(shown).tolist()])


def _limits(values: Floats, which: NDArray[np.bool_]) -> tuple[float, float]:
    """Lowest and highest of some values."""
    return float(values.min(where=which, initial=np.inf)), float(values.max(where=which, initial=-np.inf))


def _for_page(svg: bytes, name: str, titles: Mapping[str, Sequence[str]]) -> Markup:
    """Rewrite matplotlib's SVG for inlining: no style attributes or metadata, the page's colours and font."""
    root = ElementTree.fromstring(svg)
    for group, texts in titles.items():
        _add_titles(root, group, texts)
    # Only referenced ids are kept: the others are the same in every plot, and ids must be unique within a page.
    used = set(re.findall(rb"(?:href=.|url\()#(\w+)", svg))
    for parent in root.iter():
        parent.tag = parent.tag.removeprefix(_SVG)
        parent.attrib = dict(_attributes(parent.attrib, used))
        for child in [c for c in parent if c.tag in _DROPPED]:
            parent.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-caption"}
    return Markup(re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")))


def _add_titles(root: ElementTree.Element, group: str, texts: Sequence[str]) -> None:
    """Add a text to each point of a group, which browsers show as a tooltip."""
    [collection] = [element for element in root.iter(f"{_SVG}g") if element.get("id") == group]
    defined = {path for defs in collection.iter(f"{_SVG}defs") for path in defs.iter()}
    drawn = (f"{_SVG}use", f"{_SVG}path")
    points = [each for each in collection.iter() if each.tag in drawn and each not in defined]
    for point, text in zip(points, texts, strict=True):
        ElementTree.SubElement(point, f"{_SVG}title").text = str(visible(text))
        for place in [name for name in ("x", "y") if name in point.attrib]:
            point.set(place, f"{float(point.attrib[place]):.1f}")


def _attributes(attributes: dict[str, str], used: set[bytes]) -> Iterator[tuple[str, str]]:
    for key, value in attributes.items():
        if key == "style":
            for declaration in value.split(";"):
                name, _, setting = (part.strip() for part in declaration.partition(":"))
                if name and not name.startswith("font"):
                    yield name, _VARIABLES.get(setting, setting)
        elif key != "id" or value.encode() in used:
            yield key.removeprefix(_XLINK), value
