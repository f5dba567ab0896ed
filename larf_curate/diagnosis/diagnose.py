"""Diagnose a safety profile: separation, length dependence, baselines, and agreement with the scored rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from larf_curate.conversation.schemas import Row
from larf_curate.data.references import ReferenceSet
from larf_curate.diagnosis.checkpoints import checkpoint_agreement
from larf_curate.diagnosis.diagnosis import Diagnosis
from larf_curate.diagnosis.precision import float32_agreement
from larf_curate.diagnosis.scored_rows import read_scored
from larf_curate.diagnosis.separation import SeparationMetrics
from larf_curate.diagnosis.warnings import warnings_of
from larf_curate.errors import InputError
from larf_curate.profile import SIDES, Rows, SafetyProfile, find_rows
from larf_curate.scoring.folder import Scored
from larf_curate.signals import DEFAULT_SIGNAL, SIGNALS
from larf_curate.signals.baselines import BASELINES, held_out_texts, text_of
from larf_curate.signals.held_out import HeldOut
from larf_curate.stats import agreement, auroc, rank_correlation

__all__ = ["Diagnosis", "diagnose"]


def diagnose(
    profile: SafetyProfile | str | Path,
    scored: Scored | Dataset | str | Path | None = None,
    *,
    references: ReferenceSet | None = None,
    neutral: str | Path | Sequence[Row] | None = None,
    float32: bool = False,
    against: str | None = None,
    model: str | None = None,
    device: str | None = None,
) -> Diagnosis:
    """Evaluate a profile's score on its own references, held out by cross-validation, and on rows it has scored.

    Args:
        profile: The profile, or its path.
        scored: A dataset that the profile has scored, or its folder; default: only the references are evaluated.
        references: The references that the profile was built from; their texts are needed for the text-only baselines.
            Default: those the profile names, if they are built in or a file that still exists.
        neutral: The neutral rows that the profile was built from; default: likewise.
        float32: Whether to load the model in float32 and compare the rankings.
        against: Another checkpoint of the model, such as a quantised one: a folder or Hub id. A sample of the scored
            rows is read with it, and the rankings are compared.
        model: Model path, if it has moved since the profile was built; only for ``float32``.
        device: A torch device; only for ``float32`` and ``against``.

    Returns:
        Figures and warnings.

    Raises:
        ReferenceSetError: If a side has a single row, or the rows given are not the profile's.
        ProfileMismatchError: If another profile scored the rows.
        InputError: If the dataset is not scored, or ``float32`` or ``against`` is set and the texts are not available,
            or ``against`` is set and no scored folder is given.
        ModelError: If a model to compare with cannot be loaded.
    """
    if not isinstance(profile, SafetyProfile):
        profile = SafetyProfile.from_pretrained(profile)
    if isinstance(scored, str | Path):
        scored = Scored.load(scored)
    scored_rows = None if scored is None else read_scored(profile, scored)
    texts = find_rows(profile, references, neutral)
    # Raised before the slow part: without the texts the float32 model has nothing to read.
    if float32 and not isinstance(texts, Rows):
        raise InputError(f"cannot compare with float32: {texts}")
    if against and not isinstance(scored, Scored):
        raise InputError(f"wanted a scored folder to compare with {against}, got none: give what score wrote")
    if against and not isinstance(texts, Rows):
        raise InputError(f"cannot compare with {against}: {texts}")
    # Its own signal first; the axes are always reported, if the profile can have them.
    axes = replace(profile, signal=DEFAULT_SIGNAL).axes
    names = dict.fromkeys((profile.signal, *axes))
    held_out = {name: profile.held_out(name) for name in names}
    own = held_out[profile.signal]
    # The references as the signal was fitted to them, which may be cut in length.
    references_used = profile.references_for()
    lengths = {side: getattr(references_used, side)["length"][:, 0, 0] for side in SIDES}
    diagnosis = Diagnosis(
        profile=profile.summary(),
        counts={side: len(values) for side, values in lengths.items()},
        tokens={side: float(np.median(values)) for side, values in lengths.items()},
        separation={name: _separation(scores) for name, scores in held_out.items()},
        by_layer={
            layer: auroc(own.unsafe[:, index], own.neutral[:, index]) for index, layer in enumerate(profile.layers)
        },
        length=rank_correlation(own.neutral.mean(axis=1), lengths["neutral"]),
        agreement=agreement(own.neutral),
        baselines=_baselines(texts) if isinstance(texts, Rows) else {},
        scored=scored_rows,
        float32=float32_agreement(profile, texts, model=model, device=device)
        if float32 and isinstance(texts, Rows)
        else None,
        against=checkpoint_agreement(profile, texts, scored, against, device=device)
        if against and isinstance(texts, Rows) and isinstance(scored, Scored)
        else None,
        notes=tuple(_notes(profile, texts)),
    )
    return replace(diagnosis, warnings=warnings_of(diagnosis))


def _notes(profile: SafetyProfile, texts: Rows | str) -> Iterator[str]:
    """Limits of the figures: no texts for the baselines, or texts that differ from what the signal was fitted to."""
    if isinstance(texts, str):
        yield texts[0].upper() + texts[1:] + "."
    elif (count := sum(profile.references["cut"].values())) and not SIGNALS[profile.signal].full_answers:
        yield f"The signal was fitted to references of which {count} were cut in length; the baselines read them uncut."


def _separation(scores: HeldOut) -> SeparationMetrics:
    """Separation by held-out scores, averaged over the layers as larf_score is."""
    return SeparationMetrics.of(*(side.mean(axis=1) for side in (scores.unsafe, scores.safe, scores.neutral)))


def _baselines(rows: Rows) -> dict[str, SeparationMetrics]:
    """Separation by length and by TF-IDF, held out in the same folds as the signals."""
    texts = [[text_of(row) for row in side] for side in (rows.unsafe, rows.safe, rows.neutral)]
    return {name: SeparationMetrics.of(*held_out_texts(fit, texts)) for name, fit in BASELINES.items()}
