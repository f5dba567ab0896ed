"""Names of the strategies that propose what to review next; see `larf_curate.review.learning.proposals`."""

from typing import Literal, get_args

Strategy = Literal["score", "uncertain", "different"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
