"""Several judges on the same answers: their rates, their agreement, and conclusions that change with the judge."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score

from larf_curate.evaluation.judges import OpenJudge
from larf_curate.evaluation.refusal_report import RefusalReport
from larf_curate.stats import bootstrap_interval, difference_interval

Verdicts = tuple[bool | None, ...]
MIN_KAPPA = 0.6
"""Kappa below which judges are said to disagree: the lower bound of substantial agreement in Landis and Koch (1977)."""


@dataclass(frozen=True, kw_only=True)
class JudgeComparison:
    """Verdicts of several judges on the same answers.

    Args:
        refused: Verdicts by judge: whether each answer refuses; None where it is not judged.
        earlier: Verdicts of the same judges on another model's answers to the same prompts; empty without one.
    """

    refused: Mapping[str, Verdicts]
    earlier: Mapping[str, Verdicts]

    def kappas(self) -> dict[tuple[str, str], float | None]:
        """Cohen's kappa of each pair of judges over the answers that both judged, in [-1, 1].

        None where it is undefined: no such answers, or one and the same verdict on all of them.
        """
        pairs = combinations(self.refused, 2)
        return {(one, other): _kappa(self.refused[one], self.refused[other]) for one, other in pairs}

    def summary(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            "judges": {name: self._figures(name) for name in self.refused},
            "kappa": [{"judges": list(pair), "kappa": value} for pair, value in self.kappas().items()],
            "warnings": list(self.warnings()),
        }

    def warnings(self) -> Iterator[str]:
        """Warnings of unjudged answers, disagreement, and conclusions that change with the judge."""
        for name, verdicts in self.refused.items():
            if missing := verdicts.count(None):
                yield f"{name} did not judge {missing} of {len(verdicts)} answers, which are left out of its rate."
        for (one, other), kappa in self.kappas().items():
            if kappa is not None and kappa < MIN_KAPPA:
                yield f"{one} and {other} disagree (kappa {kappa:.2f}): read their answers before relying on either."
            first, second = (self._figures(name)["interval"] for name in (one, other))
            if first and second and (first[0] > second[1] or second[0] > first[1]):
                rates = [self._figures(name)["rate"] for name in (one, other)]
                yield f"The refusal rate depends on the judge: {rates[0]:.0%} by {one}, {rates[1]:.0%} by {other}."
        signs = {name: _direction(self._change(name)) for name in self.earlier}
        if len(set(signs.values())) > 1:
            said = ", ".join(f"{sign} by {name}" for name, sign in signs.items())
            yield f"Whether refusals changed depends on the judge: {said}."

    def _figures(self, name: str) -> dict[str, Any]:
        known = [value for value in self.refused[name] if value is not None]
        change = {"change": self._change(name)} if name in self.earlier else {}
        rate = sum(known) / len(known) if known else None
        unjudged = len(self.refused[name]) - len(known)
        interval = list(bootstrap_interval(known)) if known else None
        return {"rate": rate, "interval": interval, "unjudged": unjudged, **change}

    def _change(self, name: str) -> dict[str, Any] | None:
        """Mean change against the other model over the prompts judged for both, with its 95 % interval."""
        pairs = zip(self.earlier[name], self.refused[name], strict=True)
        changes = [float(new) - float(old) for old, new in pairs if old is not None and new is not None]
        return {"mean": float(np.mean(changes)), "interval": list(difference_interval(changes))} if changes else None


def compare_judges(
    report: RefusalReport, judges: Mapping[str, OpenJudge], *, earlier: RefusalReport | None = None
) -> JudgeComparison:
    """Judge the answers of a report by further judges.

    Args:
        report: The answers, and the verdicts of the first judge.
        judges: Further judges by name.
        earlier: Another model's report on the same prompts, by the same first judge.
    """

    def verdicts(of: RefusalReport) -> dict[str, Verdicts]:
        return {of.judge: of.refused} | {name: tuple(judge(of.prompts, of.answers)) for name, judge in judges.items()}

    return JudgeComparison(refused=verdicts(report), earlier=verdicts(earlier) if earlier else {})


def _kappa(one: Sequence[bool | None], other: Sequence[bool | None]) -> float | None:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if len({value for pair in pairs for value in pair}) < 2:
        return None
    return float(cohen_kappa_score(*zip(*pairs, strict=True)))


def _direction(change: Mapping[str, Any] | None) -> str:
    """What the interval of a change says."""
    if change is None:
        return "not judged"
    low, high = change["interval"]
    return "more" if low > 0 else "fewer" if high < 0 else "no clear change"
