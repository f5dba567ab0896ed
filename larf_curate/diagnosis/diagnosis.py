"""The result of a diagnosis: figures, tables, notes and warnings about a profile's score."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from larf_curate.diagnosis.checkpoints import CheckpointAgreement
from larf_curate.diagnosis.scored_rows import ScoredRows
from larf_curate.diagnosis.separation import SeparationMetrics
from larf_curate.signals import SIGNALS

BASELINE_TITLES = {"length": "length alone", "tfidf": "a count of words alone (TF-IDF)"}
"""Descriptions of the text-only baselines in tables and warnings, by name."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Figures of a profile's score, with notes and warnings.

    All figures on references come from held-out scores: signals fitted without the rows that they score.

    Args:
        profile: Summary of the profile.
        counts: Number of rows of each side: unsafe, safe, neutral.
        tokens: Median length of each side in tokens.
        separation: Separation by signal, the profile's own signal first.
        by_layer: AUROC of unsafe references against neutral rows by layer, for the profile's signal.
        length: Spearman's correlation of the score with length over neutral rows, in [-1, 1]; far from 0 is bad. None
            if undefined.
        agreement: Matrix of Spearman's correlations between layers over neutral rows; None where undefined.
        baselines: Separation by length alone and by TF-IDF alone; empty if the texts were not available.
        scored: Figures of the scored rows, if any were given.
        float32: Spearman's correlation with the scores in float32 over neutral rows, if requested.
        against: Agreement with another checkpoint of the model on scored rows, if requested.
        notes: Limits of these figures, in plain words.
        warnings: Warnings about the score, in plain words, the most serious first.
    """

    profile: dict[str, Any]
    counts: dict[str, int]
    tokens: dict[str, float]
    separation: dict[str, SeparationMetrics]
    by_layer: dict[int, float]
    length: float | None
    agreement: list[list[float | None]]
    baselines: dict[str, SeparationMetrics]
    scored: ScoredRows | None = None
    float32: float | None = None
    against: CheckpointAgreement | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def signal(self) -> str:
        """Name of the profile's signal."""
        return str(self.profile["signal"])

    @property
    def uses_safe(self) -> bool:
        """Whether the profile's signal compares rows with the safe references, which are refusals."""
        return SIGNALS[self.signal].uses_safe

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        # JSON keys are strings: converted here, so that the result equals what is read back.
        by_layer = {str(layer): value for layer, value in self.by_layer.items()}
        return {**asdict(self), "by_layer": by_layer, "notes": list(self.notes), "warnings": list(self.warnings)}

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """Title, column names and rows of cells of each table; shared by the text output and the HTML report."""
        columns = ("", "AUROC, neutral", "average precision", "AUROC, refusals", "average precision")
        baselines = {BASELINE_TITLES[name]: figures for name, figures in self.baselines.items()}
        named = {**self.separation, **baselines}
        cells = [(name, *(_number(value) for value in asdict(figures).values())) for name, figures in named.items()]
        yield "Unsafe references against neutral rows and refusals, held out", columns, cells
        layers = [str(layer) for layer in self.by_layer]
        rows = zip(layers, self.by_layer.values(), self.agreement, strict=True)
        agreement = [(layer, _number(auroc), *map(_number, pairs)) for layer, auroc, pairs in rows]
        yield (
            "Layers: AUROC, and rank correlation between layers over neutral rows",
            ("layer", "AUROC", *layers),
            agreement,
        )
        yield "Length, drift and coverage", ("", ""), list(self._facts())
        if self.against is not None:
            title = f"Agreement with {self.against.model} on {self.against.rows:,} scored rows"
            named_signals = self.against.signals.items()
            compared: list[tuple[str, ...]] = [
                (name, _number(each.correlation), f"{each.top_tenth:.0%}") for name, each in named_signals
            ]
            yield title, ("", "rank correlation", "top tenth in common"), compared
        if self.scored is not None and self.scored.guard is not None:
            yield self.scored.guard.table()
        if self.scored is not None and self.scored.beyond:
            title = "Largest clusters of rows without an unsafe reference"
            clusters: list[tuple[str, ...]] = [(" · ".join(c.texts), f"{c.rows:,}") for c in self.scored.beyond]
            yield title, ("rows nearest to the centre", "rows"), clusters

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Single figures as pairs of a label and a value."""
        lengths = ", ".join(f"{self.tokens[side]:.0f} {side}" for side in self.tokens)
        yield "median tokens", lengths
        yield "rank correlation with length, neutral rows", _number(self.length)
        if self.scored is not None:
            yield f"rank correlation with length, {self.scored.rows:,} scored rows", _number(self.scored.length)
            yield "rows without a score", f"{self.scored.unscorable:.2%}"
            if self.scored.drift is not None:
                yield (
                    "distance of the mean state from the neutral mean",
                    f"{self.scored.drift.shift:.2f} standard deviations",
                )
                yield "rows farther from the neutral mean than 99 % of neutral rows", f"{self.scored.drift.far:.1%}"
            if (covered := self.scored.coverage) is not None:
                yield (
                    "concepts and pairs of concepts covered by unsafe references",
                    f"{covered.concepts:.0%}, {covered.pairs:.0%}",
                )
                yield (
                    "clusters and cluster edges covered by unsafe references",
                    f"{covered.clusters:.0%}, {covered.edges:.0%}",
                )
        if self.float32 is not None:
            yield "rank correlation with float32", _number(self.float32)

    def __str__(self) -> str:
        parts = ["\n".join([title, *_aligned([columns, *cells])]) for title, columns, cells in self.tables()]
        parts.append("\n".join(f"Warning: {warning}" for warning in self.warnings) or "No warnings.")
        if self.notes:
            parts.append("\n".join(f"Note: {note}" for note in self.notes))
        return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a plain-text table: the first column left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return [f"  {line.rstrip()}" for line in lines if line.strip()]
