"""Whether refusals fall from quantile to quantile of a ranking: the trend, and the gap of the first and the last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from larf_curate.stats import RESAMPLES, difference_interval
from larf_curate.training.arms import Arm
from larf_curate.training.findings import ArmResult

GAP_RESAMPLES = RESAMPLES // 5
MAX_UNEQUAL = 0.05
"""Relative difference of the tokens of two quantiles above which a note says so."""


@dataclass(frozen=True, kw_only=True)
class QuantileTrend:
    """Refusals of the models trained on each quantile of a ranking, the lowest scores first.

    Args:
        signal: The signal, with the training method.
        quantiles: Results by quantile.
    """

    signal: str
    quantiles: tuple[ArmResult, ...]

    def summary(self) -> dict[str, Any]:
        """All figures as JSON values: see the methods."""
        rho, p_value = self.spearman()
        gap, interval = self.gap()
        tokens = [arm.mean("tokens") for arm in self.quantiles]
        return {
            "signal": self.signal,
            "refused": [arm.mean("harmful") for arm in self.quantiles],
            "intervals": [list(arm.interval) for arm in self.quantiles],
            "tokens": tokens,
            "equal_tokens": max(tokens) / min(tokens) - 1 <= MAX_UNEQUAL,
            "monotone": self.monotone(),
            "monotone_seeds": self.monotone_seeds(),
            "seeds": len(self._rates),
            "spearman": rho,
            "p_value": p_value,
            "gap": gap,
            "gap_interval": list(interval),
        }

    def monotone(self) -> bool:
        """Whether the mean refusal rate never rises from one quantile to the next, and falls overall."""
        return _falls(self._rates.mean(axis=0))

    def monotone_seeds(self) -> int:
        """Number of seeds in which it does."""
        return sum(map(_falls, self._rates))

    def spearman(self) -> tuple[float | None, float]:
        """Spearman's correlation of quantile and refusal rate over all runs, and its one-sided p-value.

        Negative if higher scores cost more refusals. The p-value is that of permuting the quantiles within each seed,
        since runs of one seed share what the seed draws. The correlation is None, and the p-value 1, if all runs refuse
        alike.
        """
        rates = self._rates
        if np.ptp(rates) == 0:
            return None, 1.0
        places = np.arange(rates.shape[1])
        whole = np.tile(places, len(rates))

        def statistic(*seeds: Any) -> float:  # noqa: ANN401  arrays
            return float(spearmanr(whole, np.concatenate(seeds)).statistic)

        generator, observed = np.random.default_rng(0), statistic(*rates)
        drawn = [statistic(*(generator.permutation(row) for row in rates)) for _ in range(GAP_RESAMPLES)]
        reached = sum(value <= observed + 1e-12 for value in drawn)
        return observed, (reached + 1) / (len(drawn) + 1)  # the observed order is one of the permutations

    def gap(self) -> tuple[float, tuple[float, float]]:
        """Refusal rate of the first quantile minus that of the last, with its 95 % interval over seeds and prompts."""
        first, last = self.quantiles[0].refused, self.quantiles[-1].refused
        difference, generator = first - last, np.random.default_rng(0)
        seeds, prompts = difference.shape
        if np.ptp(difference) == 0:  # nothing to resample: exact, with each prompt counted once
            return float(difference.mean()), difference_interval(difference[0])
        drawn = [
            difference[generator.integers(seeds, size=seeds)][:, generator.integers(prompts, size=prompts)].mean()
            for _ in range(GAP_RESAMPLES)
        ]
        low, high = np.quantile(drawn, [0.025, 0.975])
        return float(difference.mean()), (float(low), float(high))

    @property
    def _rates(self) -> Any:  # noqa: ANN401  an array
        """Refusal rates, shape (seeds, quantiles)."""
        return np.stack([arm.refused.mean(axis=1) for arm in self.quantiles], axis=1)


def quantile_trends(
    arms: Sequence[Arm], results: Mapping[str, ArmResult], methods: Sequence[str]
) -> list[QuantileTrend]:
    """The trends of all signals and methods whose quantiles are among the arms.

    Args:
        arms: The arms of an experiment.
        results: Its results by the name of the arm with its method.
        methods: Its training methods.
    """
    groups: dict[str, list[ArmResult]] = {}
    for method in methods:
        for arm in arms:
            if arm.quantile:
                matched = " (length-matched)" if arm.kind.endswith("-matched") else ""
                groups.setdefault(f"{arm.signal}{matched}+{method}", []).append(results[f"{arm.name}+{method}"])
    return [QuantileTrend(signal=name, quantiles=tuple(group)) for name, group in groups.items()]


def _falls(rates: Any) -> bool:  # noqa: ANN401  an array
    return bool((np.diff(rates) <= 0).all() and rates[0] > rates[-1])
