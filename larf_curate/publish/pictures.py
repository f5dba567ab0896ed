"""Plots for the dataset card, as PNG files that are the same whenever the rows are."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from larf_curate.columns import SCORE
from larf_curate.publish.kept_rows import KeptRows

FOLDER = "larf-curate"
BINS = 40
PUBLISHED, EXCLUDED = "#4c78a8", "#e45756"
DECIDED = ("kept", "edited", "removed", "withheld")
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot: its path in the repository, a description in words, and the PNG file."""

    path: str
    alt: str
    content: bytes


def draw_pictures(kept_rows: KeptRows) -> tuple[Picture, ...]:
    """Draw the scores of published and other rows and, if people reviewed, what became of flagged rows.

    Args:
        kept_rows: The rows, of which only the scores are read.
    """
    pictures = [_score_histogram(kept_rows)]
    if kept_rows.is_reviewed and kept_rows.counts["flagged"]:
        pictures.append(_decisions(kept_rows.counts))
    return tuple(pictures)


def _score_histogram(kept_rows: KeptRows) -> Picture:
    scores = [_scores(paths) for paths in (kept_rows.shards, kept_rows.excluded)]
    together = np.concatenate(scores)
    edges = np.histogram_bin_edges(together if len(together) else [0.0], bins=BINS)
    counts = [np.histogram(values, bins=edges)[0] for values in scores]
    threshold = kept_rows.selection.get("threshold")
    with _drawing() as (axes, png):
        axes.stairs(counts[0] + counts[1], edges, fill=True, color=EXCLUDED, label="not published")
        axes.stairs(counts[0], edges, fill=True, color=PUBLISHED, label="published")
        if isinstance(threshold, int | float):
            axes.axvline(threshold, color="black", linewidth=0.9, linestyle="--", label=f"threshold {threshold:.3g}")
        axes.set(xlabel=SCORE, ylabel="rows")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    alt = "Histogram of the scores of published rows and of all others"
    return Picture(path=f"{FOLDER}/scores.png", alt=alt, content=png.getvalue())


def _decisions(counts: dict[str, int]) -> Picture:
    values = [counts[name] for name in DECIDED]
    with _drawing() as (axes, png):
        bars = axes.barh(DECIDED, values, color=[PUBLISHED, PUBLISHED, EXCLUDED, EXCLUDED])
        axes.bar_label(bars, padding=3)
        axes.invert_yaxis()
        axes.set(xlabel="flagged rows")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    alt = "Bar chart of the flagged rows: " + ", ".join(f"{counts[name]} {name}" for name in DECIDED)
    return Picture(path=f"{FOLDER}/decisions.png", alt=alt, content=png.getvalue())


@contextmanager
def _drawing() -> Iterator[tuple[Axes, io.BytesIO]]:
    """Axes to draw on, and what is written when they are done: PNG without date and version."""
    png = io.BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.2), dpi=120, layout="constrained")
        yield figure.subplots(), png
        figure.savefig(png, format="png", metadata={"Software": None})


def _scores(paths: Sequence[Path]) -> NDArray[np.float32]:
    """All scores that are finite numbers."""
    columns = [pq.read_table(path, columns=[SCORE])[SCORE].cast(pa.float32()).drop_null().to_numpy() for path in paths]
    values: NDArray[np.float32] = np.concatenate([np.empty(0, np.float32), *columns])
    return values[np.isfinite(values)]
