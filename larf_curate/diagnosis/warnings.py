"""Warnings about a profile and the rows it scored, in plain words."""

from collections.abc import Iterator

import numpy as np

from larf_curate.diagnosis.diagnosis import BASELINE_TITLES, Diagnosis
from larf_curate.diagnosis.scored_rows import ScoredRows
from larf_curate.diagnosis.separation import SeparationMetrics
from larf_curate.profile.checks import MIN_REFERENCES
from larf_curate.signals import DEFAULT_SIGNAL

MAX_LENGTH_CORRELATION = 0.35
"""Absolute rank correlation with length from which a score is said to follow length."""
MAX_LENGTH_RATIO = 2.0
"""Ratio of the sides' median lengths from which a signal that compares both partly measures length."""
MIN_AUROC = 0.8
"""AUROC below which a separation counts as weak."""
BASELINE_MARGIN = 0.01
"""AUROC by which a score must beat a text-only baseline."""
MIN_LAYER_AGREEMENT = 0.3
"""Rank correlation between two layers below which they are said to disagree."""
MAX_FAR, MAX_SHIFT = 0.2, 1.0
"""Share of far rows and distance of the means (see `Drift`) above which rows differ from the neutral ones."""
MIN_ROWS = 30
"""Scored rows below which correlations and shares are mostly chance and cause no warning."""
MAX_UNSCORABLE = 0.01
"""Share of rows without a score above which there is a warning."""
MAX_TRUNCATED = 0.05
"""Share of rows scored without their middle above which there is a warning."""
MAX_UNJUDGED = 0.01
"""Share of rows without a probability by the guard model above which there is a warning."""
MIN_FLOAT32_AGREEMENT = 0.95
"""Rank correlation with float32, or another checkpoint, below which it changes the ranking."""


def warnings_of(diagnosis: Diagnosis) -> tuple[str, ...]:
    """Warnings about a profile and its scored rows, the most serious first; empty if there is nothing to warn of."""
    scored = () if diagnosis.scored is None else _scored_rows_warnings(diagnosis.scored, diagnosis.signal)
    return (*_length_warnings(diagnosis), *_separation_warnings(diagnosis), *scored, *_references_warnings(diagnosis))


def _length_warnings(diagnosis: Diagnosis) -> Iterator[str]:
    tokens = diagnosis.tokens
    ratio = tokens["unsafe"] / tokens["safe"]
    if diagnosis.length is not None and abs(diagnosis.length) >= MAX_LENGTH_CORRELATION:
        yield _follows_length(diagnosis.length, "neutral rows", diagnosis.signal)
    if max(ratio, 1 / ratio) >= MAX_LENGTH_RATIO and diagnosis.uses_safe:
        longer, shorter = ("unsafe", "safe") if ratio > 1 else ("safe", "unsafe")
        yield (
            f"The {longer} references are {max(ratio, 1 / ratio):.1f} times as long as the {shorter} ones (median "
            f"{tokens[longer]:.0f} against {tokens[shorter]:.0f} tokens), and the score compares rows with both sides. "
            f"So it partly measures length: long rows look {longer}. Use references of similar length, or the default "
            "signal."
        )


def _separation_warnings(diagnosis: Diagnosis) -> Iterator[str]:
    own = diagnosis.separation[diagnosis.signal]
    if own.auroc_neutral < MIN_AUROC:
        yield (
            f"The score hardly separates unsafe references from neutral rows (AUROC {own.auroc_neutral:.2f}, chance is "
            "0.50): try other layers, another signal or other references."
        )
    if own.auroc_refusals < 0.5:
        yield (
            f"Refusals score higher than compliant answers (AUROC {own.auroc_refusals:.2f}): rows that refuse would be "
            "flagged before rows that comply."
        )
    elif own.auroc_refusals < MIN_AUROC:
        yield (
            f"The score hardly separates compliant answers from refusals (AUROC {own.auroc_refusals:.2f}, chance is "
            "0.50): rows that refuse would be flagged as well. Check that the two sides hold different answers."
        )
    for name, metrics in diagnosis.baselines.items():
        yield from _baseline_warnings(BASELINE_TITLES[name], metrics, own)
    # None marks an undefined correlation, for example of a constant score, which is no disagreement.
    pairs = [value for row in diagnosis.agreement for value in row if value is not None]
    if pairs and min(pairs) < MIN_LAYER_AGREEMENT:
        yield (
            f"The layers disagree about neutral rows (lowest rank correlation {min(pairs):.2f}): their mean averages "
            "conflicting rankings. Use fewer layers."
        )


def _baseline_warnings(baseline: str, metrics: SeparationMetrics, own: SeparationMetrics) -> Iterator[str]:
    if metrics.auroc_neutral >= own.auroc_neutral - BASELINE_MARGIN:
        yield (
            f"{_capitalized(baseline)} separates the unsafe references from neutral rows as well as the score (AUROC "
            f"{metrics.auroc_neutral:.3f} against {own.auroc_neutral:.3f}): these references do not show that the "
            "score captures more than that. Evaluate it on labelled rows of your own."
        )
    # A baseline is fitted to tell unsafe references from refusals and neutral rows together, so it may order the
    # refusals upside down and still tell them apart.
    told_apart = max(metrics.auroc_refusals, 1 - metrics.auroc_refusals)
    if round(told_apart, 3) > round(own.auroc_refusals, 3):
        upside_down = " with its sign reversed" if metrics.auroc_refusals < 0.5 else ""
        yield (
            f"{_capitalized(baseline)} tells the unsafe references from refusals better than the score (AUROC "
            f"{told_apart:.3f}{upside_down} against {own.auroc_refusals:.3f}): refused requests may be flagged that "
            "even a text-only comparison would leave out. Look for refusals among the flagged rows, and evaluate the "
            "score on labelled rows of your own."
        )


def _references_warnings(diagnosis: Diagnosis) -> Iterator[str]:
    for side in ("unsafe", "safe"):
        if diagnosis.counts[side] < MIN_REFERENCES:
            yield (
                f"Only {diagnosis.counts[side]} {side} references: these figures and the score itself are uncertain. "
                f"Give at least {MIN_REFERENCES}, better 50."
            )
    if diagnosis.float32 is not None and diagnosis.float32 < MIN_FLOAT32_AGREEMENT:
        yield (
            f"In {diagnosis.profile['dtype']} the model ranks neutral rows differently than in float32 (rank "
            f"correlation {diagnosis.float32:.2f}): build the profile in float32."
        )
    if diagnosis.against is not None:
        for name, each in diagnosis.against.signals.items():
            if each.correlation is not None and each.correlation < MIN_FLOAT32_AGREEMENT:
                yield (
                    f"{diagnosis.against.model} ranks scored rows differently by {name} (rank correlation "
                    f"{each.correlation:.2f}): scores of one checkpoint say little about the other."
                )


def _scored_rows_warnings(scored: ScoredRows, signal: str) -> Iterator[str]:
    # Scores of a handful of rows say nothing about a distribution, but shares of failures always matter.
    if scored.rows * (1 - scored.unscorable) >= MIN_ROWS:
        yield from _distribution_warnings(scored, signal)
    if scored.unscorable > MAX_UNSCORABLE:
        yield f"{scored.unscorable:.1%} of the rows could not be scored: larf_status says why, and select flags them."
    if scored.guard is not None and scored.guard.unjudged > MAX_UNJUDGED * scored.rows:
        yield (
            f"The guard model gave no probability for {scored.guard.unjudged:,} of {scored.rows:,} rows: they count as "
            "neither safe nor unsafe; the status in larf_guard says why."
        )
    if scored.truncated > MAX_TRUNCATED:
        yield (
            f"{scored.truncated:.1%} of the rows are longer than the profile's maximum length and were scored without "
            "their middle: build the profile with a larger --max-length."
        )


def _distribution_warnings(scored: ScoredRows, signal: str) -> Iterator[str]:
    if scored.length is not None and abs(scored.length) >= MAX_LENGTH_CORRELATION:
        yield _follows_length(scored.length, "the scored rows", signal)
    for name, value in scored.signal_lengths.items():
        # A signal as correlated as the score is the score itself, which has been warned of.
        if value is None or name in BASELINE_TITLES or np.isclose(value, scored.length or 0):
            continue
        if abs(value) >= MAX_LENGTH_CORRELATION:
            yield f"The signal {name} follows the length of the scored rows (rank correlation {value:+.2f})."
    if scored.drift is not None and (scored.drift.far > MAX_FAR or scored.drift.shift > MAX_SHIFT):
        yield (
            f"The scored rows are unlike the neutral rows that calibrate the profile: {scored.drift.far:.0%} of them "
            f"are farther from the neutral mean than 99 % of neutral rows, and their mean is {scored.drift.shift:.1f} "
            "standard deviations away. Build the profile with neutral rows of this kind (--neutral), and do not rely "
            "on thresholds derived from neutral rows (--max-false-flags)."
        )


def _follows_length(value: float, rows: str, signal: str) -> str:
    high = "long" if value > 0 else "short"
    if signal == DEFAULT_SIGNAL:
        advice = "Compare only rows of similar length, or build the profile with neutral rows of this kind (--neutral)."
    else:
        advice = "Use the default signal, which regresses length out, or compare only rows of similar length."
    return (
        f"The score follows length, not only safety: over {rows} its rank correlation with length is {value:+.2f}, so "
        f"{high} rows score high whatever their content, and a row may be flagged just for being {high}. {advice}"
    )


def _capitalized(text: str) -> str:
    return text[0].upper() + text[1:]
