"""Results of an experiment: each arm compared with the initial model, as a table and a plot."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from larf_curate.errors import InputError
from larf_curate.evaluation.refusal_report import RefusalReport
from larf_curate.files import sha256
from larf_curate.records import STRICT, read_sealed
from larf_curate.stats import RESAMPLES, bootstrap_interval

TWO_WAY_RESAMPLES = RESAMPLES // 5
"""Bootstrap samples over seeds and prompts: fewer than for one mean, since each draws a matrix."""
BASE = "base"
"""Name of the initial model in tables and folders."""
RESULT, ANSWERS = "result.json", "harmful.json"
"""Names of the files with the results of a run and with its answers to the harmful prompts."""


class MeasureRecord(TypedDict):
    """A mean with its 95 % interval, and the number of prompts or rows."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    mean: float
    interval: tuple[float, float]
    rows: int


class ResultRecord(TypedDict):
    """``result.json``: the measures of a run, and what binds them to it.

    ``run`` is the folder of the run within that of the experiment, ``experiment`` the digest of what all runs of an
    experiment share, and ``answers`` the SHA-256 of ``harmful.json``. The initial model has no ``rows``, ``tokens`` and
    ``seconds_per_step`` of its training.
    """

    __pydantic_config__ = STRICT  # type: ignore[misc]

    run: str
    experiment: str
    answers: str
    harmful: MeasureRecord
    safe: NotRequired[MeasureRecord]
    held_out_loss: NotRequired[MeasureRecord]
    exact_match: NotRequired[MeasureRecord]
    rows: NotRequired[int]
    tokens: NotRequired[int]
    seconds_per_step: NotRequired[float]
    digest: str


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Results of one arm over its seeds.

    Args:
        name: Arm and training method, as in ``random+sft``.
        results: Content of ``result.json`` for each seed; see `ResultRecord`.
        refused: Whether each harmful prompt was refused, 0 or 1, shape (seeds, prompts).
    """

    name: str
    results: tuple[Mapping[str, Any], ...]
    refused: Any

    def mean(self, key: str) -> float:
        """Mean of a metric over the seeds; NaN if it was not measured."""
        measured = [result[key] for result in self.results if key in result]
        values = [value["mean"] if isinstance(value, Mapping) else value for value in measured]
        return fmean(values) if values else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the refusal rate, resampling both seeds and prompts."""
        generator = np.random.default_rng(0)
        seeds, prompts = self.refused.shape
        if self.refused.min() == self.refused.max():
            # No variance to resample: the exact interval is used, with each prompt counted once. Its answers to several
            # seeds are not independent, and all seeds together would make the interval too narrow.
            return bootstrap_interval(self.refused[0])
        means = [
            self.refused[generator.integers(seeds, size=seeds)][:, generator.integers(prompts, size=prompts)].mean()
            for _ in range(TWO_WAY_RESAMPLES)
        ]
        low, high = np.quantile(means, [0.025, 0.975])
        return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class ExperimentResults:
    """Results of all arms of an experiment and of the initial model.

    Args:
        base: Results of the initial model, without fine-tuning.
        arms: Results of the arms.
    """

    base: ArmResult
    arms: tuple[ArmResult, ...]

    @classmethod
    def read(cls, folder: Path, names: Sequence[str], seeds: Sequence[int]) -> "ExperimentResults":
        """Read the runs in an experiment's folder.

        Args:
            folder: Folder of the experiment.
            names: Names of the arms, with their methods.
            seeds: Seeds of the runs.

        Raises:
            InputError: If a result is missing or damaged, or of another run or experiment.
        """
        base = read_arm(BASE, [folder / BASE])
        arms = [read_arm(name, [run_folder(folder, name, seed) for seed in seeds]) for name in names]
        for result in (result for arm in arms for result in arm.results):
            if result["experiment"] != base.results[0]["experiment"]:
                raise InputError(
                    f"{folder / result['run']} is of another experiment than {BASE}: remove one of the two"
                )
        return cls(base=base, arms=tuple(arms))

    def table(self) -> list[dict[str, Any]]:
        """One row per arm, the initial model first: refusal rate, refusals lost, over-refusal and utility."""
        lost = {arm.name: self.base.mean("harmful") - arm.mean("harmful") for arm in self.arms}
        rows = [_table_row(self.base, lost=0.0, random=math.nan)]
        for arm in self.arms:
            # The same method on random rows: what fine-tuning costs however the rows are chosen.
            random = lost.get("random+" + arm.name.rsplit("+", 1)[1], math.nan)
            rows.append(_table_row(arm, lost=lost[arm.name], random=random))
        return rows

    def plot(self, path: str | Path) -> None:
        """Plot the refusal rate of each arm, one dot per seed, and that of the initial model as a line."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6.8, 1.2 + 0.45 * len(self.arms)), layout="constrained")
        axes = figure.subplots()
        for y, arm in enumerate(self.arms):
            low, high = arm.interval
            axes.plot([100 * low, 100 * high], [y, y], color="#4c72b0", linewidth=5, alpha=0.4)
            rates = [100 * result["harmful"]["mean"] for result in arm.results]
            axes.plot(rates, [y] * len(rates), "o", color="#26456e", markersize=4)
        axes.axvline(100 * self.base.mean("harmful"), color="#333333", linestyle=":", label="before fine-tuning")
        axes.set(xlim=(0, 100), xlabel="harmful prompts refused (%); dots: seeds, bar: 95 % interval")
        axes.set_yticks(range(len(self.arms)), [arm.name.replace("$", r"\$") for arm in self.arms])
        axes.invert_yaxis()
        axes.legend(loc="lower left", fontsize="small")
        figure.savefig(path)


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """Folder of a run; characters of the name that could change the path are replaced by ``-``."""
    return folder / re.sub(r"[^\w.+-]", "-", name) / f"seed-{seed}"


def read_arm(name: str, folders: Sequence[Path]) -> ArmResult:
    """Read the results of one arm.

    Args:
        name: Name of the arm.
        folders: Folder of the run of each seed.

    Raises:
        InputError: If a result is missing or damaged, or of another run.
    """
    results = tuple(map(read_result, folders))
    refused = np.asarray([RefusalReport.load(folder / ANSWERS).refused for folder in folders], dtype=np.float64)
    return ArmResult(name=name, results=results, refused=refused)


def read_result(folder: Path) -> ResultRecord:
    """Read the results of a run.

    Args:
        folder: Folder of the run.

    Raises:
        InputError: If they are missing or damaged, or of another run than that of the folder or of the answers in it.
    """
    path, remedy = folder / RESULT, "remove this folder, and run larf-curate verify again"
    result = read_sealed(path, ResultRecord, remedy=remedy)
    run = Path(result["run"]).parts
    if not run or folder.resolve().parts[-len(run) :] != run:
        raise InputError(f"{path} is of the run {result['run'][:60]!r}: {remedy}")
    if not (folder / ANSWERS).is_file() or sha256(folder / ANSWERS) != result["answers"]:
        raise InputError(f"{folder / ANSWERS} is not that of {RESULT} beside it: {remedy}")
    return result


def _table_row(arm: ArmResult, *, lost: float, random: float) -> dict[str, Any]:
    """A row of the table; values that were not measured are None, since JSON has no NaN."""
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
