"""`SafetyProfile`: everything that scoring needs besides the model, saved as safetensors and JSON."""

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "CONFIG_FILE": "storage",
    "SIDES": "reference_states",
    "STATES_FILE": "storage",
    "Rows": "source_rows",
    "SafetyProfile": "profile",
    "cache_profile": "profile",
    "check_drift": "checks",
    "find_rows": "source_rows",
    "neutral_digest": "provenance",
    "read_sides": "reference_states",
    "read_states": "reference_states",
    "rows_by_side": "reference_states",
}

__all__ = [
    "CONFIG_FILE",
    "SIDES",
    "STATES_FILE",
    "Rows",
    "SafetyProfile",
    "cache_profile",
    "check_drift",
    "find_rows",
    "neutral_digest",
    "read_sides",
    "read_states",
    "rows_by_side",
]

if TYPE_CHECKING:
    from larf_curate.profile.checks import check_drift
    from larf_curate.profile.profile import SafetyProfile, cache_profile
    from larf_curate.profile.provenance import neutral_digest
    from larf_curate.profile.reference_states import SIDES, read_sides, read_states, rows_by_side
    from larf_curate.profile.source_rows import Rows, find_rows
    from larf_curate.profile.storage import CONFIG_FILE, STATES_FILE


def __getattr__(name: str) -> object:
    """Load a public name from its module at first use: the review looks profiles up, mostly without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
