"""Inter-annotator agreement beyond chance, on nominal labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class AnnotatorAgreement:
    """A coefficient of inter-annotator agreement.

    Args:
        name: ``cohen_kappa`` (two annotators) or ``krippendorff_alpha`` (more, who need not all answer each row).
        value: At most 1; 1 is full agreement, 0 is chance level, below 0 is worse than chance.
        rows: Number of rows with at least two answers, from which it is computed.
    """

    name: str
    value: float
    rows: int


def agreement(answers: Sequence[Mapping[str, str]]) -> AnnotatorAgreement | None:
    """Inter-annotator agreement on the rows that at least two annotators answered.

    Args:
        answers: For each row, labels by annotator.

    Returns:
        Cohen's kappa for two annotators, Krippendorff's alpha for more. None if no row has two answers, or if all
        answers are the same label, for which both coefficients are undefined.
    """
    shared = [row for row in answers if len(row) > 1]
    labels = {label for row in shared for label in row.values()}
    annotators = sorted({name for row in shared for name in row})
    if len(labels) < 2:
        return None
    if len(annotators) == 2:
        first, second = ([row[name] for row in shared] for name in annotators)
        from sklearn.metrics import cohen_kappa_score  # takes a second

        value = float(cohen_kappa_score(first, second))
        return AnnotatorAgreement(name="cohen_kappa", value=value, rows=len(shared))
    value = krippendorff_alpha([list(row.values()) for row in shared])
    return AnnotatorAgreement(name="krippendorff_alpha", value=value, rows=len(shared))


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float:
    """Krippendorff's alpha for nominal labels: ``1 - observed disagreement / expected disagreement``.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.

    Args:
        units: Labels of each unit, from any annotators. Units with fewer than two labels are ignored; the others must
            contain at least two different labels.

    Returns:
        At most 1; 0 is chance level.
    """
    paired = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[str] = sum(paired, Counter())
    n = totals.total()
    observed = sum(_differing_pairs(unit) / (unit.total() - 1) for unit in paired) / n
    expected = _differing_pairs(totals) / (n * (n - 1))
    return 1.0 - observed / expected


def _differing_pairs(counts: Counter[str]) -> int:
    """Number of ordered pairs with different labels."""
    n = counts.total()
    return n * n - sum(count * count for count in counts.values())
