"""Plot of a layer report: the score of every block, and how the recommended blocks react to their scale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from larf_curate.errors import InputError
from larf_curate.files import atomic_path


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """The fields of a `LayerReport` that are plotted; see there.

    A separate class, so that this module does not import the report, which imports this module.
    """

    method: str
    model: str
    layers: tuple[int, ...]
    scores: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    ranking: tuple[int, ...]
    broken: tuple[int, ...]
    alphas: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    baseline: float | None
    prompts: int


SUFFIXES = (".png", ".svg", ".pdf")
SCORE_LABELS = {
    "sweep": "change of the refusal rate",
    "forward": "change of the share leaning to refuse",
    "gradient": "d(refusal log-odds) / d(scale)",
    "separation": "Fisher ratio, held out",
}
_PLAIN, _CHOSEN, _BROKEN, _INK = "#b8c4d0", "#c2410c", "#ffffff", "#374151"
_SHADES = ("#c2410c", "#0f766e", "#7c3aed", "#a16207", "#1d4ed8")
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "larf-curate",
}


def draw(report: BlockScores, path: Path) -> Path:
    """Plot a report into a file.

    Raises:
        InputError: If the file's suffix is not supported.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"wanted a plot file ending in {', '.join(SUFFIXES)}, got {path.name}")
    with rc_context(_STYLE):
        figure = Figure(figsize=(max(6.5, 0.19 * len(report.scores) + 1.5), 5.6 if report.alphas else 3.2), dpi=150)
        figure.set_layout_engine("constrained")
        axes = figure.subplots(2 if report.alphas else 1, squeeze=False, height_ratios=[3, 2] if report.alphas else [1])
        _draw_bars(report, axes[0, 0])
        if report.alphas:
            _draw_curves(report, axes[1, 0])
        with atomic_path(path) as aside:
            # Without a date, the same report always gives the same SVG file.
            metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
            figure.savefig(aside, format=path.suffix[1:].lower(), metadata=metadata)
    return path


def _draw_bars(report: BlockScores, axes: Axes) -> None:
    scores, low, high = (np.asarray(values) for values in (report.scores, report.low, report.high))
    kinds: dict[str, tuple[list[int], dict[str, Any]]] = {
        "recommended": (list(report.layers), {"color": _CHOSEN}),
        "other": ([b for b in report.ranking if b not in report.layers], {"color": _PLAIN}),
        "broken when scaled": (list(report.broken), {"color": _BROKEN, "edgecolor": "#6b7280", "hatch": "////"}),
    }
    for label, (blocks, look) in kinds.items():
        if blocks:
            spread = np.maximum([scores[blocks] - low[blocks], high[blocks] - scores[blocks]], 0)
            axes.bar(
                blocks,
                scores[blocks],
                width=0.75,
                label=label,
                yerr=spread,
                ecolor="#4b5563",
                error_kw={"lw": 0.9},
                **look,
            )
    _set_y_limits(report, axes)
    axes.axhline(0, color="#9ca3af", lw=0.8)
    axes.set_xlabel("block")
    axes.set_ylabel(SCORE_LABELS[report.method])
    axes.set_xlim(-0.7, len(scores) - 0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    unit = "pairs" if report.method == "separation" else "prompts"
    axes.set_title(f"{report.model}, {report.method}, {report.prompts} {unit}", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")


def _set_y_limits(report: BlockScores, axes: Axes) -> None:
    """Fit the y axis to the sound blocks: a broken one may be far off."""
    blocks = list(report.ranking) or list(range(len(report.scores)))
    bottom = min(0.0, *(report.low[block] for block in blocks))
    top = max(0.0, *(report.high[block] for block in blocks))
    height = (top - bottom) or 1.0
    axes.set_ylim(bottom - 0.08 * height, top + 0.18 * height)  # more above, where the legend is


def _draw_curves(report: BlockScores, axes: Axes) -> None:
    below = sum(alpha < 1 for alpha in report.alphas)
    alphas = [*report.alphas[:below], 1.0, *report.alphas[below:]]
    for block in report.ranking:
        curve = report.curves[block]
        values = [*curve[:below], report.baseline, *curve[below:]]
        if block in report.layers[: len(_SHADES)]:
            color = _SHADES[report.layers.index(block)]
            axes.plot(alphas, values, "o-", ms=3.5, color=color, label=f"block {block}", zorder=3)  # type: ignore[arg-type]
        else:
            axes.plot(alphas, values, "-", lw=0.8, color=_PLAIN)  # type: ignore[arg-type]
    axes.set_xticks(alphas)
    axes.set_xlabel("scale of the block's projection weights")
    axes.set_ylabel("refusal rate" if report.method == "sweep" else "share leaning to refuse")
    if report.layers:
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
