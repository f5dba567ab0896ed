"""Find the decoder blocks that a model's refusals depend on: the first phase of LARF, and faster ways to its answer.

Method: Layer-Aware Representation Filtering, https://arxiv.org/abs/2507.18631.

Which method: ``gradient`` first. ``sweep`` is the authors' procedure and the yardstick: where time allows, compare the
two with `LayerReport.agreement`. ``forward`` lies between them. ``separation`` is for models that never or always
refuse; it says where unsafe and safe answers differ, not what refusals depend on.

Which layers: the first of `LayerReport.layers` for a score at one layer, as in the paper. Blocks whose intervals
overlap are equally good, and a score over two or three of them averages out what is particular to one. A block that
breaks the model when it is scaled is never recommended, however much refusals change with it.

Numbers: a layer is a 0-based decoder block everywhere. The authors' sweep numbers blocks alike, but their score reads
``hidden_states[i]``, the output of block ``i - 1``: a layer that they score at as ``i`` is ``i - 1`` here.
"""

from larf_curate.layers.find import find_safety_layers
from larf_curate.layers.report import Agreement, LayerReport

__all__ = ["Agreement", "LayerReport", "find_safety_layers"]
