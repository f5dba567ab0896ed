"""Learning from decisions: scored rows are re-ranked from stored scores and states, without the model.

The log-odds that people remove a row are estimated by logistic regression with Gaussian priors (the maximum a
posteriori, MAP):

    log odds = a + b z(score) + c z(signals) + w u

``z(x)`` is ``(x - median) / standard deviation`` over all rows, and ``u`` is ``unit(state - centre)``, projected onto
its 64 main directions. The prior means reproduce the machine score: b = 1, c = w = 0, and a = -2, with which a row two
standard deviations above the median is removed with probability 1/2. Without decisions the order is therefore exactly
that of ``larf_score``.

At the MAP, w is a weighted sum of the decided rows' u, so that ``w u`` compares a row's cosines to removed rows with
those to kept rows. The references of the profile are training data too, unsafe ones as removed, safe and neutral ones
as kept: they weigh as much as ten decisions altogether, and less while there are only a few decisions. Decisions can be
mistaken, so labels are smoothed: no decision counts as more than 95 % certain.

Decisions on other datasets that the same profile scored can be learned from too (``earlier``). Altogether they count as
ten decisions at most.
"""

from larf_curate.review.learning.inputs import References, StoredRows
from larf_curate.review.learning.ranking import LEARNED, HeldOutAccuracy, Learned, learn, rank
from larf_curate.review.learning.space import farthest

__all__ = ["LEARNED", "HeldOutAccuracy", "Learned", "References", "StoredRows", "farthest", "learn", "rank"]
