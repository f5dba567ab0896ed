"""Names of the methods that rank decoder blocks, importable without torch; see `larf_curate.layers.methods`."""

from typing import Literal, get_args

Method = Literal["gradient", "forward", "sweep", "separation"]
METHOD_NAMES: tuple[Method, ...] = get_args(Method)
