"""Find the decoder blocks that a model's refusals depend on: the first phase of LARF, and faster ways to its answer.

Method: Layer-Aware Representation Filtering, https://arxiv.org/abs/2507.18631. A layer is a 0-based decoder block
everywhere. The authors' sweep numbers blocks alike, but their score reads ``hidden_states[i]``, the output of block
``i - 1``: a layer that they score at as ``i`` is ``i - 1`` here.
"""

from larf_curate.layers.find import find_safety_layers
from larf_curate.layers.report import Agreement, LayerReport

__all__ = ["Agreement", "LayerReport", "find_safety_layers"]
