"""Array types of hidden states, shared by the models that compute them and the signals that score them."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Position = Literal["last", "prompt", "mean", "length"]
States = dict[Position, Vectors]
"""States by position, each of shape (turns, layers, d); ``length`` has d = 1."""
POSITIONS: tuple[Position, ...] = ("last", "prompt", "mean", "length")
"""Where a turn's state is read: ``last``, at the turn's last token; ``prompt``, at the last token of its prompt;
``mean``, averaged over the tokens of its answer. ``length`` is not a state: it is the number of tokens up to the end of
the turn, repeated at every layer, so that signals can regress length out."""
