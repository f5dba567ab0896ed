"""Plots of a report, as SVG that takes its colours and font from the page and has no style attributes.

The page's Content-Security-Policy blocks inline styles, so matplotlib's are rewritten as presentation attributes.
Placeholder colours become CSS variables, so that the same SVG works in light and dark mode.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

from larf_curate.report.statistics import Floats, Statistics

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_DROPPED = {f"{_SVG}metadata", f"{_SVG}style"}
# Placeholders that no other part of a drawing uses; `_VARIABLES` maps them to the colours of the page.
_INK, _LINE, _SCORE, _FLAGGED = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "var(--muted)", _LINE: "var(--line)", _SCORE: "var(--score)", _FLAGGED: "var(--flagged)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 8.5,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
}
_BINS = 40
_MAX_POINTS = 2000  # beyond that a density plot: each point is an SVG element, so the page would grow with the dataset
_PART = 100_000  # rows whose hexagons are counted together
_PERCENTILES = (5, 25, 50, 75, 95)


@contextmanager
def _drawing(name: str, xlabel: str, ylabel: str) -> Iterator[tuple[Axes, list[Markup]]]:
    """Yield axes to draw on and a list; on exit, the SVG is appended to the list."""
    result: list[Markup] = []
    # The fixed salt makes element ids the same in every run, and those of two plots different.
    with rc_context(_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.subplots()
        yield axes, result
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    result.append(_for_page(stream.getvalue(), name))


def score_histogram(statistics: Statistics, threshold: float | None) -> Markup:
    """Draw a histogram of the scores, flagged rows stacked on top of the others."""
    scores, scored, flagged = statistics.scores, statistics.scored, statistics.flagged_scored
    edges = np.histogram_bin_edges([], bins=_BINS, range=_limits(scores, scored))
    counts = [np.histogram(scores[rows], bins=edges)[0] for rows in (scored & ~flagged, flagged)]
    with _drawing("histogram", "score", "rows") as (axes, svg):
        # Counts, since matplotlib copies the values of all rows several times.
        axes.hist([edges[:-1]] * 2, list(edges), weights=counts, stacked=True, color=[_SCORE, _FLAGGED], rwidth=0.88)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linewidth=0.9, linestyle=(0, (3, 2)))
            left = threshold > edges.mean()
            axes.annotate(
                f"threshold {threshold:.3f}",
                (threshold, 1),
                xycoords=("data", "axes fraction"),
                xytext=(-4 if left else 4, -2),
                textcoords="offset points",
                ha="right" if left else "left",
                va="top",
            )
    return svg[0]


def score_against_length(statistics: Statistics, threshold: float | None) -> Markup:
    """Draw score against length: a scatter plot for few rows, a hexagonal density plot for many."""
    known = statistics.scored & np.isfinite(statistics.lengths)
    flagged = known & statistics.flagged_scored
    lengths = np.maximum(statistics.lengths, 1)  # a logarithmic axis has no 0
    with _drawing("length", "characters in the conversation", "score") as (axes, svg):
        axes.set_xscale("log")
        if known.sum() <= _MAX_POINTS:
            for which, color, alpha in ((known & ~flagged, _SCORE, 0.45), (flagged, _FLAGGED, 0.85)):
                axes.scatter(lengths[which], statistics.scores[which], s=9, color=color, alpha=alpha, linewidths=0)
        else:
            _density(axes, lengths, statistics.scores, known)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        if threshold is not None:
            axes.axhline(threshold, color=_INK, linewidth=0.9, linestyle=(0, (3, 2)))
    return svg[0]


def layer_distributions(statistics: Statistics, labels: Sequence[str]) -> Markup:
    """Draw the scores at each layer: median, interquartile range and middle 90 %, flagged rows beside the others."""
    flagged = statistics.flagged_scored
    groups = [(statistics.scored & ~flagged, _SCORE), (flagged, _FLAGGED)]
    groups = [(rows, color) for rows, color in groups if rows.any()]
    # Up to 8 layers there is room for wide bars; beyond that the bars of adjacent layers would touch.
    thickness = 7.0 if len(labels) <= 8 else 3.0
    with _drawing("layers", "block of the model", "score at the block") as (axes, svg):
        for index, (rows, color) in enumerate(groups):
            x = np.arange(len(labels)) + (index - (len(groups) - 1) / 2) * (0.18 if len(labels) <= 8 else 0.4)
            layers = statistics.layer_scores.T
            low, first, median, third, high = np.transpose([np.nanpercentile(s[rows], _PERCENTILES) for s in layers])
            axes.vlines(x, low, high, color=color, linewidth=1)
            axes.vlines(x, first, third, color=color, linewidth=thickness)
            axes.plot(x, median, "_", markersize=1.8 * thickness, color=color, markeredgewidth=1.6)
        step = -(-len(labels) // 16)  # rounded up: at most 16 tick labels fit
        axes.set_xticks(range(0, len(labels), step), labels[::step])
        axes.set_xlim(-0.6, len(labels) - 0.4)
    return svg[0]


def _density(axes: Axes, lengths: Floats, scores: Floats, known: NDArray[np.bool_]) -> None:
    """Draw hexagons whose opacity grows with the logarithm of their number of rows."""
    corners = np.array([_limits(lengths, known), _limits(scores, known)])

    def drawn(rows: slice) -> PolyCollection:
        # With the corners, all parts have the same hexagons; rows with NaN are left out.
        x, y = np.concatenate([corners, [lengths[rows], scores[rows]]], axis=1)
        return axes.hexbin(x, y, gridsize=36, xscale="log", linewidths=0)

    hexagons = drawn(slice(0))
    only_corners = np.asarray(hexagons.get_array())
    counts = np.zeros_like(only_corners)
    # Counted in parts, since matplotlib needs 20 times the memory of the values.
    for start in range(0, len(scores), _PART):
        part = drawn(slice(start, start + _PART))
        counts += np.asarray(part.get_array()) - only_corners
        part.remove()
    hexagons.set_array(None)  # otherwise a colour map would override the colours set below
    _keep(hexagons, counts > 0)
    counts = counts[counts > 0]
    # Logarithmic: most rows are in a few hexagons, and the others would be invisible.
    alphas = 0.15 + 0.85 * np.log1p(counts) / np.log1p(counts.max())
    hexagons.set_facecolor([(*to_rgba(_SCORE)[:3], alpha) for alpha in alphas])


def _keep(hexagons: PolyCollection, shown: NDArray[np.bool_]) -> None:
    """Remove the other hexagons of a `hexbin`: offsets of one path or, in Matplotlib 3.9, a path for each."""
    if len(paths := hexagons.get_paths()) == 1:
        hexagons.set_offsets(np.asarray(hexagons.get_offsets())[shown])
    else:  # without the point that closes a path
        hexagons.set_verts([np.asarray(paths[index].vertices)[:-1] for index in np.flatnonzero(shown).tolist()])


def _limits(values: Floats, which: NDArray[np.bool_]) -> tuple[float, float]:
    """Lowest and highest of some values."""
    return float(values.min(where=which, initial=np.inf)), float(values.max(where=which, initial=-np.inf))


def _for_page(svg: bytes, name: str) -> Markup:
    """Rewrite matplotlib's SVG for inlining: no style attributes or metadata, the page's colours and font."""
    root = ElementTree.fromstring(svg)
    # Only referenced ids are kept: the others are the same in every plot, and ids must be unique within a page.
    used = set(re.findall(rb"(?:href=.|url\()#(\w+)", svg))
    for parent in root.iter():
        parent.tag = parent.tag.removeprefix(_SVG)
        parent.attrib = dict(_attributes(parent.attrib, used))
        for child in [c for c in parent if c.tag in _DROPPED]:
            parent.remove(child)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-labelledby": f"{name}-caption"}
    return Markup(re.sub(r">\s+<", "><", ElementTree.tostring(root, encoding="unicode")))


def _attributes(attributes: dict[str, str], used: set[bytes]) -> Iterator[tuple[str, str]]:
    for key, value in attributes.items():
        if key == "style":
            for declaration in value.split(";"):
                name, _, setting = (part.strip() for part in declaration.partition(":"))
                if name and not name.startswith("font"):
                    yield name, _VARIABLES.get(setting, setting)
        elif key != "id" or value.encode() in used:
            yield key.removeprefix(_XLINK), value
