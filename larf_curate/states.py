"""Types of hidden states, shared by what computes them and what scores them."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Position = Literal["last", "prompt", "mean", "length"]
States = dict[Position, Vectors]
"""States by position, each of shape (turns, layers, d); ``length`` has d = 1."""
POSITIONS: tuple[Position, ...] = ("last", "prompt", "mean", "length")
"""Where a turn's state is read: at its last token, at its prompt's last token, or averaged over its answer's tokens;
``length`` is no state but the number of tokens up to the turn's end, the same at every layer."""
