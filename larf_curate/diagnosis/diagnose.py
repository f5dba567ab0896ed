"""Tells the user of a safety profile what its score means, and when it means something else than safety."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from larf_curate.conversation.schemas import Row
from larf_curate.data.references import ReferenceSet
from larf_curate.diagnosis.diagnosis import Diagnosis
from larf_curate.diagnosis.precision import float32_agreement
from larf_curate.diagnosis.scored_rows import read_scored
from larf_curate.diagnosis.separation import Separation
from larf_curate.diagnosis.warnings import warnings_of
from larf_curate.errors import InputError
from larf_curate.profile import SIDES, Rows, SafetyProfile, find_rows
from larf_curate.scoring.folder import Scored
from larf_curate.signals import AXES, SIGNALS
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
    model: str | None = None,
    device: str | None = None,
) -> Diagnosis:
    """Judge a profile's score by its own references, and by the rows it has scored.

    Args:
        profile: The profile, or where it lies.
        scored: A dataset it has scored, or the folder of one.
        references: The references it was built from; needed for their words, found if they are the built-in ones or a
            file that is still there.
        neutral: Its neutral rows, likewise.
        float32: Whether to load the model in float32 and compare the ranks.
        model: Where the model lies now, if not where it lay; for ``float32`` alone.
        device: A torch device; for ``float32`` alone.

    Returns:
        Figures and warnings.

    Raises:
        ReferenceSetError: If a side has a single row, or the rows given are not the profile's.
        ProfileMismatchError: If another profile scored the rows.
        InputError: If the dataset is not scored, or float32 is asked for and the texts are not to be had.
    """
    if not isinstance(profile, SafetyProfile):
        profile = SafetyProfile.from_pretrained(profile)
    if isinstance(scored, str | Path):
        scored = Scored.load(scored)
    rows = None if scored is None else read_scored(profile, scored)
    texts = find_rows(profile, references, neutral)
    if float32 and not isinstance(texts, Rows):
        raise InputError(f"cannot compare with float32: {texts}")
    names = dict.fromkeys((profile.signal, *AXES))
    held_out = {name: profile.held_out(name) for name in names}
    own = held_out[profile.signal]
    compared = profile.references_for()
    lengths = {side: getattr(compared, side)["length"][:, 0, 0] for side in SIDES}
    diagnosis = Diagnosis(
        profile=profile.summary(),
        counts={side: len(values) for side, values in lengths.items()},
        tokens={side: float(np.median(values)) for side, values in lengths.items()},
        separation={name: _separation(scores) for name, scores in held_out.items()},
        by_layer={
            layer: auroc(own.unsafe[:, place], own.neutral[:, place]) for place, layer in enumerate(profile.layers)
        },
        length=rank_correlation(own.neutral.mean(axis=1), lengths["neutral"]),
        agreement=agreement(own.neutral),
        baselines=_baselines(texts) if isinstance(texts, Rows) else {},
        scored=rows,
        float32=float32_agreement(profile, texts, model=model, device=device)
        if float32 and isinstance(texts, Rows)
        else None,
        notes=tuple(_notes(profile, texts)),
    )
    return replace(diagnosis, warnings=warnings_of(diagnosis))


def _notes(profile: SafetyProfile, texts: Rows | str) -> Iterator[str]:
    if isinstance(texts, str):
        yield texts[0].upper() + texts[1:] + "."
    elif (count := sum(profile.references["cut"].values())) and not SIGNALS[profile.signal].full_answers:
        yield f"The score is made from references of which {count} were cut in length; the baselines see them whole."


def _separation(scores: HeldOut) -> Separation:
    return Separation.of(*(side.mean(axis=1) for side in (scores.unsafe, scores.safe, scores.neutral)))


def _baselines(rows: Rows) -> dict[str, Separation]:
    texts = [[text_of(row) for row in side] for side in (rows.unsafe, rows.safe, rows.neutral)]
    return {name: Separation.of(*held_out_texts(fit, texts)) for name, fit in BASELINES.items()}
