"""Learning from people: everything stored is ranked anew by what people decided, without the model.

A row's odds of being removed are estimated by logistic regression with Gaussian priors (the maximum a posteriori):

    log odds = a + b z(score) + c z(signals) + w u,    u = unit(state - centre) in its 64 main directions

The priors are the machine: b lies around 1, a around -2 (a row two standard deviations above the median is removed or
kept with equal odds), c and w around 0. Without decisions the order is therefore exactly the machine's. w is a weighted
sum of the decided rows, so ``w u`` is a row's cosine to rows that people removed less that to rows they kept. A
profile's references count as ten decisions altogether and fade in with the first decisions: unsafe ones as removed,
safe and neutral ones as kept. People click wrongly now and then, so no decision counts as more than 95 % certain.
"""

from larf_curate.review.learning.inputs import References, StoredRows
from larf_curate.review.learning.ranking import LEARNED, HeldOut, Learned, learn, rank
from larf_curate.review.learning.space import farthest

__all__ = ["LEARNED", "HeldOut", "Learned", "References", "StoredRows", "farthest", "learn", "rank"]
