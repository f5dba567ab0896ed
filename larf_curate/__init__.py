"""Find the rows of a fine-tuning dataset that would break a model's safety, have people decide, publish what they keep.

Public names load on first use, so that ``import larf_curate`` stays light and does not import torch.
"""

import importlib
from typing import TYPE_CHECKING

from larf_curate.version import __version__ as __version__

_HOMES = {
    "ExemplarIndex": "scoring.exemplars",
    "LarfScorer": "scoring.scorer",
    "LayerReport": "layers",
    "ReferenceSet": "data.references",
    "SafetyProfile": "profile",
    "Selection": "scoring.selection",
    "find_safety_layers": "layers",
    "select": "scoring.selection",
}

__all__ = [
    "ExemplarIndex",
    "LarfScorer",
    "LayerReport",
    "ReferenceSet",
    "SafetyProfile",
    "Selection",
    "find_safety_layers",
    "select",
]

if TYPE_CHECKING:
    from larf_curate.data.references import ReferenceSet
    from larf_curate.layers import LayerReport, find_safety_layers
    from larf_curate.profile import SafetyProfile
    from larf_curate.scoring.exemplars import ExemplarIndex
    from larf_curate.scoring.scorer import LarfScorer
    from larf_curate.scoring.selection import Selection, select


def __getattr__(name: str) -> object:
    """Load a public name from its module at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
