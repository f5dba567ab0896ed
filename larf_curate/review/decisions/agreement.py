"""How far annotators agree beyond chance, on nominal labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sklearn.metrics import cohen_kappa_score


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """An agreement coefficient.

    Args:
        name: ``cohen_kappa`` (two annotators) or ``krippendorff_alpha`` (more, or rows in common only in part).
        value: At most 1; 1 is full agreement, 0 is chance, below 0 is worse than chance.
        rows: Number of rows with at least two answers, on which it rests.
    """

    name: str
    value: float
    rows: int


def agreement(answers: Sequence[Mapping[str, str]]) -> Agreement | None:
    """Agreement of annotators on the rows that at least two of them answered.

    Args:
        answers: For each row the label by annotator.

    Returns:
        Cohen's kappa for two annotators, Krippendorff's alpha for more; None if there is nothing to compare, or if
        all answers are the same label, for which both are undefined.
    """
    shared = [row for row in answers if len(row) > 1]
    labels = {label for row in shared for label in row.values()}
    annotators = sorted({name for row in shared for name in row})
    if len(labels) < 2:
        return None
    if len(annotators) == 2:
        first, second = ([row[name] for row in shared] for name in annotators)
        value = float(cohen_kappa_score(first, second))
        return Agreement(name="cohen_kappa", value=value, rows=len(shared))
    value = krippendorff_alpha([list(row.values()) for row in shared])
    return Agreement(name="krippendorff_alpha", value=value, rows=len(shared))


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float:
    """Krippendorff's alpha for nominal labels: ``1 - observed disagreement / expected disagreement``.

    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section C.

    Args:
        units: The labels that each unit got, from any annotators; units with fewer than two are left out. At least two
            different labels must occur in the others.
    """
    paired = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[str] = sum(paired, Counter())
    n = totals.total()
    observed = sum(_differing_pairs(unit) / (unit.total() - 1) for unit in paired) / n
    expected = _differing_pairs(totals) / (n * (n - 1))
    return 1.0 - observed / expected


def _differing_pairs(counts: Counter[str]) -> int:
    """Number of ordered pairs of different labels."""
    n = counts.total()
    return n * n - sum(count * count for count in counts.values())
