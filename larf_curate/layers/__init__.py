"""Find the decoder blocks that a model's refusals depend on: LARF's first phase, and faster methods for the same.

Method: Layer-Aware Representation Filtering, https://arxiv.org/abs/2507.18631.

Which method: start with ``gradient``. ``sweep`` is the authors' procedure and the standard of comparison: if time
allows, compare the two with `LayerReport.agreement`. ``forward`` is in between. ``separation`` is for models that never
or always refuse; it measures where unsafe and safe answers differ, not what refusals depend on.

Which layers: the first of `LayerReport.layers` for a score at one layer, as in the paper. Blocks whose intervals
overlap are equally good, and a score over two or three of them averages out peculiarities of one. A block that breaks
the model when scaled is never recommended, no matter how much refusals change with it.

Numbering: a layer is a 0-based decoder block everywhere. The authors' sweep numbers blocks in the same way, but their
score reads ``hidden_states[i]``, the output of block ``i - 1``: their scoring layer ``i`` is layer ``i - 1`` here.
"""

import importlib
from typing import TYPE_CHECKING

_HOMES = {"Agreement": "report", "LayerReport": "report", "find_safety_layers": "find"}

__all__ = ["Agreement", "LayerReport", "find_safety_layers"]

if TYPE_CHECKING:
    from larf_curate.layers.find import find_safety_layers
    from larf_curate.layers.report import Agreement, LayerReport


def __getattr__(name: str) -> object:
    """Load a public name from its module at first use: names of methods are needed without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
