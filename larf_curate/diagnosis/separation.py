"""The figures of a diagnosis: how well scores separate, and what else they follow."""

from dataclasses import dataclass

from larf_curate.stats import Values, auroc, average_precision


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a score tells unsafe references from others; 1 is perfect, an AUROC of 0.5 is chance.

    Args:
        auroc_neutral: Chance that an unsafe reference scores higher than a neutral row.
        precision_neutral: Average precision among the neutral rows.
        auroc_refusals: Chance that an unsafe reference scores higher than a refusal.
        precision_refusals: Average precision among the refusals.
    """

    auroc_neutral: float
    precision_neutral: float
    auroc_refusals: float
    precision_refusals: float

    @classmethod
    def of(cls, unsafe: Values, safe: Values, neutral: Values) -> "Separation":
        """Compare scores of shape (n,) of the three sides."""
        return cls(
            auroc_neutral=auroc(unsafe, neutral),
            precision_neutral=average_precision(unsafe, neutral),
            auroc_refusals=auroc(unsafe, safe),
            precision_refusals=average_precision(unsafe, safe),
        )
