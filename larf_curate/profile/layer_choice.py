"""Which layers a profile reads where it is not told: by separation, and by what refusals depend on."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from larf_curate.errors import InputError, ModelError, ProfileError
from larf_curate.layers import LayerReport, find_safety_layers
from larf_curate.layers.choice import cumulative_share, middle_half
from larf_curate.models.hidden_states import is_out_of_memory
from larf_curate.models.loading import FORWARD_ERRORS
from larf_curate.models.source import ModelSource, public_name
from larf_curate.profile.building import LoadedModel

logger = logging.getLogger(__name__)
ALONE = "separation of held-out references"
BOTH = f"{ALONE} and what refusals depend on, equally"


def find_sensitivity(model: LoadedModel) -> LayerReport | None:
    """What a model's refusals depend on, by the gradient; None, with a warning, where that cannot be told.

    A model that refuses nothing, has experts or quantised weights, or is too large to take a gradient is scored
    nevertheless.

    Args:
        model: The model, with its head where it has one.

    Raises:
        ModelError: If the gradient fails for a reason that this package does not know.
    """
    found = _sensitivity(model)
    if isinstance(found, LayerReport):
        return found
    logger.warning(
        "layers are chosen by the separation of references alone, since %s (larf-curate layers tells more)", found
    )
    return None


def _sensitivity(model: LoadedModel) -> LayerReport | str:
    """What was found, or the reason why nothing could be."""
    if model.causal_lm is None:
        return "the model could not be loaded with its head"
    try:
        return find_safety_layers(model.causal_lm, tokenizer=model.reader.tokenizer)
    except (ModelError, InputError) as error:
        return str(error).partition(": ")[0]
    except FORWARD_ERRORS as error:
        if is_out_of_memory(error):
            return "memory is short"
        raise ModelError(
            f"the gradient of {model.source.model_id} failed ({type(error).__name__}: {error}): name the layers "
            "(layers=[…], --layers) and please report this"
        ) from error


def check_report(report: LayerReport, source: ModelSource, blocks: int) -> None:
    """Refuse a layer report that is of another model or of no use, and warn of one that may be of another.

    Raises:
        ProfileError: If it has another number of blocks, or scores that are not finite.
    """
    if len(report.scores) != blocks:
        raise ProfileError(
            f"wanted a layer report of this model, which has {blocks} blocks, got one of {report.model} with "
            f"{len(report.scores)}"
        )
    if not np.isfinite(report.scores).all():
        raise ProfileError(f"the layer report of {report.model} has scores that are not finite: make it again")
    names = public_name(report.model), public_name(source.model_id)
    if names[0] != names[1]:
        logger.warning("the layer report is of %s, the profile of %s: are they the same model?", *names)


def sensitivity_of(report: LayerReport | None) -> Sequence[float] | None:
    """How much refusals depend on each block; None if that is not known, or nothing stands out.

    Args:
        report: What was found of a model's blocks; those known to break the model count as 0. One by ``separation`` is
            not about refusals.
    """
    if report is None or report.method == "separation" or not report.layers:
        return None
    return [0.0 if block in report.broken else score for block, score in enumerate(report.scores)]


def choice_of(report: LayerReport | None, chosen: Sequence[int]) -> dict[str, Any]:
    """How the layers were chosen, as the profile records it.

    Args:
        report: What was found of the blocks, if anything.
        chosen: The layers that were chosen.
    """
    if report is None:
        return {"by": f"{ALONE}: what refusals depend on could not be told"}
    found = {
        "model": public_name(report.model),
        "method": report.method,
        "most_sensitive": list(map(int, report.layers)),
    }
    sensitivity = sensitivity_of(report)
    if report.method == "separation":
        return _alone("the layer report is by separation, not of refusals", found)
    if sensitivity is None:
        return _alone("no block stands out in what refusals depend on", found)
    shares = cumulative_share(sensitivity)
    if not np.ptp(shares[middle_half(len(shares))]):
        return _alone("refusals depend on no block of the middle half", found)
    return {"by": BOTH, **found, "carried": [round(float(shares[block]), 3) for block in chosen]}


def _alone(reason: str, found: dict[str, Any]) -> dict[str, Any]:
    logger.warning("layers are chosen by the separation of references alone, since %s", reason)
    return {"by": f"{ALONE}: {reason}", **found}
