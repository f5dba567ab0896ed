"""`SafetyProfile`: everything that scoring needs besides the model, saved as safetensors and JSON."""

from larf_curate.profile.checks import check_drift
from larf_curate.profile.profile import SafetyProfile, cache_profile
from larf_curate.profile.provenance import neutral_digest
from larf_curate.profile.reference_states import SIDES, read_sides, read_states, rows_by_side
from larf_curate.profile.source_rows import Rows, find_rows
from larf_curate.profile.storage import CONFIG_FILE, STATES_FILE

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
