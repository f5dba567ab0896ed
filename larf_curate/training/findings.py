"""Results of an experiment: every arm beside the model it started from, as a table and a plot."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from larf_curate.evaluation.refusal_report import RefusalReport
from larf_curate.files import read_json
from larf_curate.stats import RESAMPLES, bootstrap_interval

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One arm over its seeds.

    Args:
        name: Arm and method.
        results: The figures of each seed.
        refused: Refusals of the harmful prompts, shape (seeds, prompts).
    """

    name: str
    results: tuple[Mapping[str, Any], ...]
    refused: Any

    def mean(self, key: str) -> float:
        """Mean of a figure over the seeds; NaN if it was not measured."""
        found = [result[key] for result in self.results if key in result]
        values = [value["mean"] if isinstance(value, Mapping) else value for value in found]
        return fmean(values) if values else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the refusal rate, seeds and prompts both resampled."""
        generator = np.random.default_rng(0)
        seeds, prompts = self.refused.shape
        if self.refused.min() == self.refused.max():
            return bootstrap_interval(self.refused[0])
        means = [
            self.refused[generator.integers(seeds, size=seeds)][:, generator.integers(prompts, size=prompts)].mean()
            for _ in range(RESAMPLES // 5)
        ]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All arms of an experiment beside the model they started from.

    Args:
        base: The start.
        arms: The arms.
    """

    base: Finding
    arms: tuple[Finding, ...]

    @classmethod
    def read(cls, folder: Path, names: Sequence[str], seeds: Sequence[int]) -> "Findings":
        """Read the runs of an experiment's folder."""
        arms = [read_finding(name, [run_folder(folder, name, seed) for seed in seeds]) for name in names]
        return cls(base=read_finding(BASE, [folder / BASE]), arms=tuple(arms))

    def table(self) -> list[dict[str, Any]]:
        """One row an arm: refusals with interval, refusals lost, over-refusal, utility, size."""
        lost = {arm.name: self.base.mean("harmful") - arm.mean("harmful") for arm in self.arms}
        rows = [_figures(self.base, lost=0.0, random=math.nan)]
        for arm in self.arms:
            random = lost.get("random+" + arm.name.rsplit("+", 1)[1], math.nan)
            rows.append(_figures(arm, lost=lost[arm.name], random=random))
        return rows

    def plot(self, path: str | Path) -> None:
        """Draw the refusals left by each arm, one dot a seed, beside those of the start."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.8, 1.2 + 0.45 * len(self.arms)), layout="constrained")
        axes = figure.subplots()
        for place, arm in enumerate(self.arms):
            low, high = arm.interval
            axes.plot([100 * low, 100 * high], [place, place], color="#4c72b0", linewidth=5, alpha=0.4)
            rates = [100 * result["harmful"]["mean"] for result in arm.results]
            axes.plot(rates, [place] * len(rates), "o", color="#26456e", markersize=4)
        axes.axvline(100 * self.base.mean("harmful"), color="#333333", linestyle=":", label="before fine-tuning")
        axes.set(xlim=(0, 100), xlabel="harmful prompts refused (%); dots: seeds, bar: 95 % interval")
        axes.set_yticks(range(len(self.arms)), [arm.name.replace("$", r"\$") for arm in self.arms])
        axes.invert_yaxis()
        axes.legend(loc="lower left", fontsize="small")
        figure.savefig(path)


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """Where a run lies, its name without what a path could misread."""
    return folder / re.sub(r"[^\w.+-]", "-", name) / f"seed-{seed}"


def read_finding(name: str, folders: Sequence[Path]) -> Finding:
    """Read the results of one arm, a folder for each seed."""
    results = tuple(read_json(folder / "result.json") for folder in folders)
    refused = np.asarray([RefusalReport.load(folder / "harmful.json").refused for folder in folders], dtype=np.float64)
    return Finding(name=name, results=results, refused=refused)


def _figures(arm: Finding, *, lost: float, random: float) -> dict[str, Any]:
    row = {
        "arm": arm.name,
        "seeds": len(arm.results),
        "rows": arm.mean("rows"),
        "tokens_per_row": arm.mean("tokens") / arm.mean("rows"),
        "refused": arm.mean("harmful"),
        "interval": list(arm.interval),
        "lost": lost,
        "lost_against_random": lost / random if random > 0 else math.nan,
        "over_refusal": arm.mean("safe"),
        "held_out_loss": arm.mean("held_out_loss"),
        "exact_match": arm.mean("exact_match"),
        "seconds_per_step": arm.mean("seconds_per_step"),
    }
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
