"""Whether a low-precision profile ranks rows as the same model does in float32."""

from dataclasses import replace

import numpy as np

from larf_curate.data.references import ReferenceSet
from larf_curate.models.devices import resolve_device
from larf_curate.models.loading import load_reader
from larf_curate.profile import Rows, SafetyProfile, check_drift, read_sides, rows_by_side
from larf_curate.stats import rank_correlation

OTHER_MODEL = 0.5
"""Relative difference of the first reference's state above which another model, not rounding, must be the cause."""


def float32_agreement(
    profile: SafetyProfile, rows: Rows, *, model: str | None = None, device: str | None = None
) -> float | None:
    """Spearman's correlation between the profile's scores of the neutral rows and those of the model in float32.

    Args:
        profile: The profile.
        rows: The rows it was built from.
        model: Model path, if it has moved since the profile was built.
        device: A torch device; default: the first available accelerator.

    Returns:
        In [-1, 1]; 1 means that precision does not change the ranking. None if all neutral rows have the same score.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If it is not the profile's model.
    """
    source = replace(profile.source, dtype="float32")
    if model:
        source = replace(source, model_id=model, revision=None)
    reader = load_reader(source, profile.layers, device=resolve_device(device), max_length=profile.max_length)
    refs = ReferenceSet(unsafe=rows.unsafe, safe=rows.safe, labels=(), source="")
    # Rebuild the states exactly as the profile did, length matching included, so that only the dtype differs.
    sides = rows_by_side(refs, rows.neutral, reader, match=any(profile.references["cut"].values()))
    states = read_sides(reader, sides)
    check_drift(
        states["unsafe"]["last"][:1],
        profile.states["unsafe"]["last"][:1],
        allowed=OTHER_MODEL,
        model_id=source.model_id,
        built_with=profile.source.model_id,
    )
    in_float32 = replace(profile, source=source, states=states)
    scores = [np.mean(each.fit()(each.states["neutral"]), axis=1) for each in (profile, in_float32)]
    return rank_correlation(*scores)
