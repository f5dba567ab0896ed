"""How well a score separates unsafe references from neutral rows and from refusals."""

from dataclasses import dataclass

from larf_curate.stats import Values, auroc, average_precision


@dataclass(frozen=True, kw_only=True)
class SeparationMetrics:
    """Separation of unsafe references from other rows by a score; all in [0, 1], higher is better.

    An AUROC of 0.5 is chance. Chance for the average precision is the share of unsafe references among the rows
    compared.

    Args:
        auroc_neutral: AUROC of unsafe references against neutral rows.
        average_precision_neutral: Average precision of unsafe references against neutral rows.
        auroc_refusals: AUROC of unsafe references against refusals, the safe references.
        average_precision_refusals: Average precision of unsafe references against refusals.
    """

    auroc_neutral: float
    average_precision_neutral: float
    auroc_refusals: float
    average_precision_refusals: float

    @classmethod
    def of(cls, unsafe: Values, safe: Values, neutral: Values) -> "SeparationMetrics":
        """Compute the metrics from the scores of the three sides, each of shape (n,)."""
        return cls(
            auroc_neutral=auroc(unsafe, neutral),
            average_precision_neutral=average_precision(unsafe, neutral),
            auroc_refusals=auroc(unsafe, safe),
            average_precision_refusals=average_precision(unsafe, safe),
        )
