"""Inter-annotator agreement on nominal labels: of all annotators, of one with the others, and on one label."""

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


MIN_ROWS = 10
"""Least number of rows from which a coefficient is computed for a person or a label; it would be arbitrary before."""


@dataclass(frozen=True, kw_only=True)
class SharedRows:
    """Agreement on the rows that some answers share.

    Args:
        rows: Number of rows.
        share: Share of pairs of answers that agree, in [0, 1]; None if there are no pairs.
        coefficient: Cohen's kappa for a person, Krippendorff's alpha for a label; at most 1, 0 is chance level. None
            for fewer than ``MIN_ROWS`` rows, and if it is undefined because all answers are the same.
    """

    rows: int
    share: float | None
    coefficient: float | None


def agreement_with_others(answers: Sequence[Mapping[str, str]]) -> dict[str, SharedRows]:
    """Agreement of each person with the others, on the rows that another one answered too.

    The pairs are those of the person's answer with each other one on the row; kappa is that of the two sides of all
    pairs (with one other person, that of the two).

    Args:
        answers: For each row, labels by annotator.

    Returns:
        By annotator; also those who share no row.
    """
    found = {}
    for name in sorted({name for row in answers for name in row}):
        shared = [row for row in answers if name in row and len(row) > 1]
        pairs = [(row[name], label) for row in shared for other, label in row.items() if other != name]
        share = sum(own == label for own, label in pairs) / len(pairs) if pairs else None
        found[name] = SharedRows(rows=len(shared), share=share, coefficient=_kappa(pairs, len(shared)))
    return found


def agreement_by_label(answers: Sequence[Mapping[str, str]]) -> dict[str, SharedRows]:
    """Agreement on each label, on the rows that at least two people answered, one of them with the label.

    The share is that of specific agreement: of all pairs of an answer with the label and another answer on the row, how
    many others have it too. Alpha is that of the label against all others together, on all rows with two answers.

    Source of specific agreement: Cicchetti & Feinstein, High agreement but low kappa II (1990); for several annotators:
    de Vet et al., Specific agreement on dichotomous outcomes (2017).

    Args:
        answers: For each row, labels by annotator.
    """
    units = [Counter(row.values()) for row in answers if len(row) > 1]
    found = {}
    for label in sorted({label for unit in units for label in unit}):
        shared = [unit for unit in units if unit[label]]
        both = sum(unit[label] * (unit[label] - 1) for unit in shared)
        pairs = sum(unit[label] * (unit.total() - 1) for unit in shared)
        binary = [[str(other == label) for other in unit.elements()] for unit in units]
        defined = len(shared) >= MIN_ROWS and len({value for unit in binary for value in unit}) > 1
        alpha = krippendorff_alpha(binary) if defined else None
        found[label] = SharedRows(rows=len(shared), share=both / pairs, coefficient=alpha)
    return found


def _kappa(pairs: Sequence[tuple[str, str]], rows: int) -> float | None:
    """Cohen's kappa of the two sides of pairs; None if it is undefined or there are too few rows."""
    if rows < MIN_ROWS or len({label for pair in pairs for label in pair}) < 2:
        return None
    from sklearn.metrics import cohen_kappa_score  # takes a second

    return float(cohen_kappa_score(*zip(*pairs, strict=True)))


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
