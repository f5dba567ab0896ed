"""Diagnosis: what a safety profile's score means, as figures and in plain words."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from larf_curate.diagnosis.scored_rows import ScoredRows
from larf_curate.diagnosis.separation import Separation
from larf_curate.signals import SIGNALS


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What a profile's score means; all figures on references are of rows left out of the making of the signal.

    Args:
        profile: Summary of the profile.
        counts: Number of unsafe, safe and neutral rows.
        tokens: Their median lengths in tokens.
        separation: By signal, the profile's own first.
        by_layer: AUROC of unsafe references against neutral rows, by layer, of the profile's signal.
        length: Spearman's correlation of the score with length, over neutral rows.
        agreement: Spearman's correlation of every two layers, over neutral rows.
        baselines: What length and words alone reach.
        scored: Figures of the scored rows, if there were any.
        float32: Rank agreement with float32 over neutral rows, if it was asked for.
        notes: What could not be told, and why.
        warnings: What a user of the score must know, in plain words.
    """

    profile: dict[str, Any]
    counts: dict[str, int]
    tokens: dict[str, float]
    separation: dict[str, Separation]
    by_layer: dict[int, float]
    length: float | None
    agreement: list[list[float | None]]
    baselines: dict[str, Separation]
    scored: ScoredRows | None = None
    float32: float | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def signal(self) -> str:
        """The profile's signal."""
        return str(self.profile["signal"])

    @property
    def uses_safe(self) -> bool:
        """Whether the profile's signal compares rows with refusals."""
        return SIGNALS[self.signal].uses_safe

    def to_json(self) -> dict[str, Any]:
        """JSON values: every field, and the warnings."""
        by_layer = {str(layer): value for layer, value in self.by_layer.items()}
        return {**asdict(self), "by_layer": by_layer, "notes": list(self.notes), "warnings": list(self.warnings)}

    def tables(self) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
        """(title, column names, cells) of every table."""
        columns = ("", "AUROC, ordinary", "precision", "AUROC, refusals", "precision")
        named = {**self.separation, **{f"{name} alone": figures for name, figures in self.baselines.items()}}
        cells = [(name, *(_number(value) for value in asdict(figures).values())) for name, figures in named.items()]
        yield "Unsafe references against ordinary rows and refusals, held out", columns, cells
        layers = [str(layer) for layer in self.by_layer]
        rows = zip(layers, self.by_layer.values(), self.agreement, strict=True)
        agreement = [(layer, _number(auroc), *map(_number, pairs)) for layer, auroc, pairs in rows]
        yield "Layers: AUROC, and rank correlation over ordinary rows", ("layer", "AUROC", *layers), agreement
        yield "What else the score follows", ("", ""), list(self._facts())
        if self.scored is not None and self.scored.beyond:
            title = "Largest clusters of rows in which no unsafe reference lies"
            clusters: list[tuple[str, ...]] = [(" · ".join(c.texts), f"{c.rows:,}") for c in self.scored.beyond]
            yield title, ("rows nearest to its centre", "rows"), clusters

    def _facts(self) -> Iterator[tuple[str, str]]:
        lengths = ", ".join(f"{self.tokens[side]:.0f} {side}" for side in self.tokens)
        yield "median tokens", lengths
        yield "rank correlation with length, ordinary rows", _number(self.length)
        if self.scored is not None:
            yield f"rank correlation with length, {self.scored.rows:,} scored rows", _number(self.scored.length)
            yield "rows without a score", f"{self.scored.unscorable:.2%}"
            if self.scored.drift is not None:
                yield "mean state, from the neutral mean", f"{self.scored.drift.shift:.2f} standard deviations"
                yield "rows farther out than 99 % of neutral rows", f"{self.scored.drift.far:.1%}"
            if (covered := self.scored.coverage) is not None:
                yield "unsafe references cover of concepts, pairs", f"{covered.concepts:.0%}, {covered.pairs:.0%}"
                yield "unsafe references cover of clusters, edges", f"{covered.clusters:.0%}, {covered.edges:.0%}"
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
    """Cells as columns of text, the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
    return [f"  {line.rstrip()}" for line in lines if line.strip()]
