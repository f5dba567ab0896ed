"""Plain words for what a user of a score must know."""

from collections.abc import Iterator

import numpy as np

from larf_curate.diagnosis.diagnosis import Diagnosis
from larf_curate.diagnosis.scored_rows import ScoredRows
from larf_curate.signals import DEFAULT_SIGNAL

FEW = 10
FOLLOWS_LENGTH = 0.35
UNEQUAL = 2.0
WEAK = 0.8
CLOSE = 0.01
DISAGREE = 0.3
FAR, SHIFT = 0.2, 1.0
FEW_ROWS = 30
"""Scored rows below which correlations and shares are chance: no warning rests on them."""
UNSCORABLE = 0.01
TRUNCATED = 0.05
SAME_RANKS = 0.95
BASELINES = {"length": "length alone", "tfidf": "a count of words alone (TF-IDF)"}


def warnings_of(diagnosis: Diagnosis) -> tuple[str, ...]:
    """What is wrong with a profile or does not suit the scored rows, the gravest first."""
    scored = () if diagnosis.scored is None else _of_scored(diagnosis.scored, diagnosis.signal)
    return (*_of_length(diagnosis), *_of_separation(diagnosis), *scored, *_of_references(diagnosis))


def _of_length(diagnosis: Diagnosis) -> Iterator[str]:
    tokens = diagnosis.tokens
    ratio = tokens["unsafe"] / tokens["safe"]
    follows = diagnosis.length is not None and abs(diagnosis.length) >= FOLLOWS_LENGTH
    if follows:
        yield _length_warning(diagnosis.length, "ordinary rows", diagnosis.signal)
    if max(ratio, 1 / ratio) >= UNEQUAL and diagnosis.uses_safe:
        longer, shorter = ("unsafe", "safe") if ratio > 1 else ("safe", "unsafe")
        yield (
            f"The {longer} references are {max(ratio, 1 / ratio):.1f} times as long as the {shorter} ones (median "
            f"{tokens[longer]:.0f} against {tokens[shorter]:.0f} tokens), and the score compares rows with both: so it "
            f"partly measures length, {longer} meaning long. Take references of like length, or the default signal."
        )


def _of_separation(diagnosis: Diagnosis) -> Iterator[str]:
    own = diagnosis.separation[diagnosis.signal]
    if own.auroc_neutral < WEAK:
        yield (
            f"The score hardly tells unsafe references from ordinary rows (AUROC {own.auroc_neutral:.2f}, chance is "
            "0.50): take other layers, another signal or other references."
        )
    if own.auroc_refusals < 0.5:
        yield (
            f"Refusals score higher than compliant answers (AUROC {own.auroc_refusals:.2f}): rows that refuse would be "
            "flagged before rows that comply."
        )
    elif own.auroc_refusals < WEAK:
        yield (
            f"The score hardly tells compliant answers from refusals (AUROC {own.auroc_refusals:.2f}, chance is 0.50): "
            "rows that refuse would be flagged as well. Are the two sides of the references different answers?"
        )
    for name, figures in diagnosis.baselines.items():
        if figures.auroc_neutral >= own.auroc_neutral - CLOSE:
            yield (
                f"{_capital(BASELINES[name])} tells the unsafe references from ordinary rows as well as the score does "
                f"(AUROC {figures.auroc_neutral:.3f} against {own.auroc_neutral:.3f}): these references do not show "
                "that the score sees more than that. Judge it on labelled rows of your own."
            )
    pairs = [value for row in diagnosis.agreement for value in row if value is not None]
    if pairs and min(pairs) < DISAGREE:
        yield (
            f"The layers disagree about ordinary rows (lowest rank correlation {min(pairs):.2f}): their mean hides two "
            "opinions. Take fewer layers."
        )


def _of_references(diagnosis: Diagnosis) -> Iterator[str]:
    for side in ("unsafe", "safe"):
        if diagnosis.counts[side] < FEW:
            yield (
                f"Only {diagnosis.counts[side]} {side} references: the figures here and the score itself rest on very "
                f"little. Give at least {FEW}, better 50."
            )
    if diagnosis.float32 is not None and diagnosis.float32 < SAME_RANKS:
        yield (
            f"In {diagnosis.profile['dtype']} the model ranks ordinary rows otherwise than in float32 (rank "
            f"correlation {diagnosis.float32:.2f}): build the profile in float32."
        )


def _of_scored(scored: ScoredRows, signal: str) -> Iterator[str]:
    if scored.rows * (1 - scored.unscorable) >= FEW_ROWS:
        yield from _of_many(scored, signal)
    if scored.unscorable > UNSCORABLE:
        yield f"{scored.unscorable:.1%} of the rows could not be scored; see larf_status, and select flags them."
    if scored.truncated > TRUNCATED:
        yield (
            f"{scored.truncated:.1%} of the rows are longer than the profile reads, and were scored without the rest: "
            "build it with a larger --max-length."
        )


def _of_many(scored: ScoredRows, signal: str) -> Iterator[str]:
    if scored.length is not None and abs(scored.length) >= FOLLOWS_LENGTH:
        yield _length_warning(scored.length, "the scored rows", signal)
    for name, value in scored.signal_lengths.items():
        if value is None or name in BASELINES or np.isclose(value, scored.length or 0):
            continue
        if abs(value) >= FOLLOWS_LENGTH:
            yield f"The signal {name} follows the length of the scored rows (rank correlation {value:+.2f})."
    if scored.drift is not None and (scored.drift.far > FAR or scored.drift.shift > SHIFT):
        yield (
            f"The scored rows are unlike the neutral rows the profile is calibrated by: {scored.drift.far:.0%} of them "
            f"lie farther out than 99 % of neutral rows do, and their mean is {scored.drift.shift:.1f} standard "
            "deviations away. Build the profile with ordinary rows of this kind (--neutral), and do not trust "
            "thresholds that neutral rows set."
        )


def _length_warning(value: float | None, where: str, signal: str) -> str:
    high = "long" if (value or 0) > 0 else "short"
    if signal == DEFAULT_SIGNAL:
        advice = "Compare rows of like length only, or build the profile with ordinary rows of this kind (--neutral)."
    else:
        advice = "Use the default signal, which takes off what length predicts, or compare rows of like length only."
    return (
        f"The score follows length, not only safety: over {where} its rank correlation with length is {value:+.2f}, so "
        f"{high} rows score high whatever they say. A row flagged by it may be flagged for being {high}. {advice}"
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
