"""Names of the strategies that choose the records to review next, or the rows to push.

See `larf_curate.review.learning.proposals` and `larf_curate.review.sampling`.

They have a module of their own so that the command line can list them without importing the review itself.
"""

from typing import Literal, get_args

Strategy = Literal["score", "uncertain", "different", "random"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
PUSH_STRATEGIES = ("flagged", "harm")
"""``flagged``: all flagged rows. ``harm``: those with the highest expected harm, and random ones, within a budget."""
