"""Names of the strategies that choose the records to review next; see `larf_curate.review.learning.proposals`.

They have a module of their own so that the command line can list them without importing the review itself.
"""

from typing import Literal, get_args

Strategy = Literal["score", "uncertain", "different"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
