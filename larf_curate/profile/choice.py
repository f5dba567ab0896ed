"""Which layers a profile reads where it is not told: by separation, and by what refusals depend on if that is known."""

from collections.abc import Sequence
from typing import Any

from larf_curate.errors import ProfileError
from larf_curate.layers.report import LayerReport


def sensitivity_of(report: LayerReport, blocks: int) -> Sequence[float] | None:
    """How much refusals depend on each block; None if none stands out, as in a model that refuses nothing.

    Args:
        report: What was found of a model's blocks; those that break the model count as 0.
        blocks: Number of blocks of the model at hand.

    Raises:
        ProfileError: If the report is of a model with another number of blocks.
    """
    if len(report.scores) != blocks:
        raise ProfileError(
            f"wanted a layer report of this model, which has {blocks} blocks, got one of {report.model} with "
            f"{len(report.scores)}"
        )
    if not report.layers:
        return None
    return [0.0 if block in report.broken else score for block, score in enumerate(report.scores)]


def choice_of(report: LayerReport | None) -> dict[str, Any]:
    """How the layers were chosen, as the profile records it."""
    if report is None:
        return {"by": "separation of held-out references"}
    found = {"model": report.model, "method": report.method, "recommended": list(report.layers)}
    if not report.layers:
        return {"by": "separation of held-out references: no block stands out in the layer report", **found}
    return {"by": "separation of held-out references and the layer report, equally", **found}
