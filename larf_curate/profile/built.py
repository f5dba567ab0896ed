"""Profiles that were built on this machine: found again by model and references, so that none is built twice."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError, ProfileError
from larf_curate.files import cache_home, sampled_digest
from larf_curate.models.devices import resolve_device, resolve_dtype
from larf_curate.models.source import ModelSource, identify, weights_digest
from larf_curate.profile.profile import SafetyProfile, cache_profile
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.version import __version__

logger = logging.getLogger(__name__)


class BuiltRecord(TypedDict):
    """Record of a profile in the cache: its digest, under the name of what it was built from."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    profile: str
    digest: str


def built_profile(model: str | Path, references: ReferenceSet, *, device: str | None = None) -> SafetyProfile:
    """Build a profile with the default settings, or load it from the cache if it was built before.

    It is built again for other weights, another tokenizer or chat template, other references, another dtype (which
    depends on the device) or another version of this package.

    Args:
        model: A local folder or a Hub id.
        references: The references.
        device: A torch device; default: the first available accelerator.

    Returns:
        The profile.

    Raises:
        ModelError: If the model cannot be loaded; see `SafetyProfile.build`.
        ReferenceSetError: If the references do not suit the model or the signal.
    """
    record = cache_home() / "built" / f"{_key(model, references, device)}.json"
    try:
        digest = read_sealed(record, BuiltRecord, remedy="it is built again")["profile"]
        return SafetyProfile.from_pretrained(cache_home() / "profiles" / digest)
    except (InputError, ProfileError) as error:  # not there, or damaged
        logger.debug("no profile in the cache: %s", error)
    profile = SafetyProfile.build(model, references, device=device)
    folder = cache_profile(profile)
    write_sealed(record, {"profile": profile.digest})
    return SafetyProfile.from_pretrained(folder)  # whose arrays have another layout, which gives other last digits


def _key(model: str | Path, references: ReferenceSet, device: str | None) -> str:
    """Name of all that a profile depends on."""
    source = ModelSource(model_id=identify(model))
    folder = Path(source.model_id)
    settings: dict[str, Any] = {
        "model": source.model_id,
        "weights": weights_digest(source),
        "files": sampled_digest(sorted([*folder.glob("*.json"), *folder.glob("*.jinja")])) if folder.is_dir() else None,
        "references": references.digest,
        "dtype": resolve_dtype("auto", resolve_device(device)),
        "package": __version__,
    }
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
