"""Whether a low-precision profile ranks as the same model does in float32."""

from dataclasses import replace

import numpy as np

from larf_curate.data.references import ReferenceSet
from larf_curate.models.devices import resolve_device
from larf_curate.models.loading import load_reader
from larf_curate.profile import Rows, SafetyProfile, check_drift, read_sides, rows_by_side
from larf_curate.stats import rank_correlation

OTHER_MODEL = 0.5
"""Relative difference of the first reference's state beyond which rounding is not what made it."""


def float32_agreement(
    profile: SafetyProfile, rows: Rows, *, model: str | None = None, device: str | None = None
) -> float | None:
    """Spearman's correlation over the neutral rows of the profile's scores with those of its model in float32.

    Args:
        profile: The profile.
        rows: The rows it was built from.
        model: Where the model lies now, if not where it lay.
        device: A torch device; the first accelerator there is, if left out.

    Returns:
        From -1 to 1; None where a score does not vary.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If it is not the profile's.
    """
    source = replace(profile.source, dtype="float32")
    if model:
        source = replace(source, model_id=model, revision=None)
    reader = load_reader(source, profile.layers, device=resolve_device(device), max_length=profile.max_length)
    refs = ReferenceSet(unsafe=rows.unsafe, safe=rows.safe, labels=(), source="")
    sides = rows_by_side(refs, rows.neutral, reader.tokenizer, match=any(profile.references["cut"].values()))
    states = read_sides(reader, sides)
    check_drift(
        states["unsafe"]["last"][:1],
        profile.states["unsafe"]["last"][:1],
        allowed=OTHER_MODEL,
        model_id=source.model_id,
        built_with=profile.source.model_id,
    )
    exact = replace(profile, source=source, states=states)
    scores = [np.mean(made.fit()(made.states["neutral"]), axis=1) for made in (profile, exact)]
    return rank_correlation(*scores)
