"""Which layers a profile reads where it is not told: by separation, and by what refusals depend on."""

import logging
from collections.abc import Sequence
from typing import Any

from larf_curate.errors import LarfCurateError, ProfileError
from larf_curate.layers import LayerReport, find_safety_layers
from larf_curate.loading import UNRUNNABLE
from larf_curate.model_source import ModelSource
from larf_curate.rendering import Tokenizer

logger = logging.getLogger(__name__)


def find_sensitivity(source: ModelSource, tokenizer: Tokenizer, device: str) -> LayerReport | None:
    """What a model's refusals depend on, by the gradient; None, with a warning, where that cannot be told.

    A model that refuses nothing, has experts or quantised weights, or is too large to take a gradient is scored
    nevertheless.

    Args:
        source: The model, its dtype resolved.
        tokenizer: Its tokenizer, with the chat template that is used.
        device: A torch device.
    """
    try:
        return find_safety_layers(
            source.model_id,
            tokenizer=tokenizer,
            device=device,
            dtype=source.dtype,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
    except (LarfCurateError, *UNRUNNABLE) as error:
        logger.warning("layers are chosen by the separation of references alone: %s", error)
        return None


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
        return {"by": "separation of held-out references: what refusals depend on could not be told"}
    found = {"model": report.model, "method": report.method, "recommended": list(report.layers)}
    if not report.layers:
        return {"by": "separation of held-out references: no block stands out in what refusals depend on", **found}
    return {"by": "separation of held-out references and what refusals depend on, equally", **found}
