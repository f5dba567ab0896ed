"""Default layers of a profile: chosen by separation of references and by the sensitivity of refusals."""

import logging
from collections.abc import Sequence
from datetime import date
from typing import Any

import numpy as np

from larf_curate.conversation.templates import template_digest
from larf_curate.data.prompts import overrejection_prompts
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError, ModelError, ProfileError
from larf_curate.layers import LayerReport, find_safety_layers
from larf_curate.layers.choice import cumulative_share, middle_half
from larf_curate.models.hidden_states import is_out_of_memory
from larf_curate.models.loading import FORWARD_ERRORS
from larf_curate.models.source import ModelSource, public_name
from larf_curate.profile.building import LazyModel
from larf_curate.profile.state_cache import ReportCache

logger = logging.getLogger(__name__)
# Recorded in profiles, whose digests depend on them: these and the reasons appended to them must not change.
ALONE = "separation of held-out references"
BOTH = f"{ALONE} and what refusals depend on, equally"


def find_sensitivity(model: LazyModel) -> LayerReport | None:
    """Measure by the gradient which blocks refusals depend on; None, with a warning, if that is impossible.

    A model that refuses nothing, has experts or quantised weights, or is too large for a gradient can be scored
    nevertheless, so this is not an error.

    Args:
        model: The model, with its head if it has one.

    Raises:
        ModelError: If the gradient fails for an unexpected reason.
    """
    found = _sensitivity(model)
    if isinstance(found, LayerReport):
        return found
    logger.warning("layers are chosen by the separation of references alone, since %s (see larf-curate layers)", found)
    return None


def _sensitivity(model: LazyModel) -> LayerReport | str:
    """The report, or the reason why there is none, from the cache if it was found before."""
    cache = _cache_of(model)
    if cache and (stored := cache.load()):
        return stored
    found = _find(model)
    if cache and isinstance(found, LayerReport):
        cache.store(found)
    return found


def _cache_of(model: LazyModel) -> ReportCache | None:
    """Cached report of a model, its chat template, the prompts and the references; None if nothing is cached."""
    if model.digest is None:
        return None
    source = model.source.record | {"model_id": public_name(model.source.model_id)}
    dates = str(date.today()) if model.source.day else ""  # which the template of the prompts writes
    texts = [overrejection_prompts(), ReferenceSet.load("builtin").digest]
    return ReportCache(content=[model.digest, source, dates, template_digest(model.renderer.tokenizer), texts])


def _find(model: LazyModel) -> LayerReport | str:
    """Run the gradient."""
    if model.causal_lm is None:
        return "the model could not be loaded with its head"
    try:
        return find_safety_layers(model.causal_lm, tokenizer=model.renderer.tokenizer)
    except (ModelError, InputError) as error:
        return str(error).partition(": ")[0]
    except FORWARD_ERRORS as error:
        if is_out_of_memory(error):
            return "memory ran out"
        raise ModelError(
            f"the gradient of {model.source.model_id} failed ({type(error).__name__}: {error}): give the layers "
            "(layers=[…], --layers) and please report this as a bug"
        ) from error


def check_report(report: LayerReport, source: ModelSource, blocks: int) -> None:
    """Check that a layer report fits a model, and warn if it may be of another one.

    Args:
        report: The layer report.
        source: The model.
        blocks: Number of decoder blocks of the model.

    Raises:
        ProfileError: If the number of blocks differs, or a score is not finite.
    """
    if len(report.scores) != blocks:
        raise ProfileError(
            f"wanted a layer report of this model, which has {blocks} blocks, got one of {report.model} with "
            f"{len(report.scores)}"
        )
    if not np.isfinite(report.scores).all():
        raise ProfileError(f"the layer report of {report.model} has scores that are not finite: create it again")
    names = public_name(report.model), public_name(source.model_id)
    if names[0] != names[1]:
        logger.warning("the layer report is of %s, the profile of %s: are they the same model?", *names)


def sensitivity_of(report: LayerReport | None) -> Sequence[float] | None:
    """Sensitivity of refusals to each block; None if it is unknown or no block differs from chance.

    Args:
        report: A layer report. Blocks that break the model count as 0; a report by ``separation`` is not about
            refusals and gives None.
    """
    if report is None or report.method == "separation" or not report.layers:
        return None
    return [0.0 if block in report.broken else score for block, score in enumerate(report.scores)]


def choice_of(report: LayerReport | None, chosen: Sequence[int]) -> dict[str, Any]:
    """Record of how the layers were chosen, for `SafetyProfile.choice`.

    Args:
        report: The layer report; None if there is none.
        chosen: The chosen layers.
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
    if not np.ptp(shares[middle_half(len(shares))]):  # equal shares do not change the ranking
        return _alone("refusals depend on no block of the middle half", found)
    return {"by": BOTH, **found, "carried": [round(float(shares[block]), 3) for block in chosen]}


def _alone(reason: str, found: dict[str, Any]) -> dict[str, Any]:
    """Record, and warn, that separation alone has decided."""
    logger.warning("layers are chosen by the separation of references alone, since %s", reason)
    return {"by": f"{ALONE}: {reason}", **found}
