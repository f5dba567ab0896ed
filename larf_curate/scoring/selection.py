"""Selection: scores become two datasets, kept and flagged, with a reason for every flagged row."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, concatenate_datasets
from numpy.typing import NDArray

from larf_curate.columns import PREFIX, row_id
from larf_curate.data.tables import read_parquet, undecoded, write_parquet
from larf_curate.errors import InputError
from larf_curate.files import read_json, write_json
from larf_curate.manifests import SELECTION, VERSION, check_folder, check_manifest, check_profile
from larf_curate.profile import SafetyProfile

RULES = ("top_ratio", "top_k", "threshold", "percentile", "max_false_flags")
LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """A scored dataset in two parts; unpacks as ``kept, flagged``.

    Both parts have ``larf_row_id``, ``larf_flagged``, ``larf_reason`` and ``larf_percentile`` beside the scored
    columns; the flagged part is sorted worst first, rows that could not be scored last.

    Args:
        kept: Rows below the threshold, in dataset order.
        flagged: Rows at or above it, and those that could not be scored.
        rule: The rule and its value, as ``{"top_ratio": 0.05}``.
        threshold: Lowest flagged score; None if no row was flagged for its score.
        scored: Manifest of the scored dataset, if it was read from disk.
    """

    kept: Dataset
    flagged: Dataset
    rule: dict[str, float]
    threshold: float | None
    scored: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Dataset]:
        return iter((self.kept, self.flagged))

    @property
    def reasons(self) -> dict[str, str]:
        """Why each flagged row is flagged, by row id, worst first."""
        return dict(zip(_column(self.flagged, "larf_row_id"), _column(self.flagged, "larf_reason"), strict=True))

    def summary(self) -> dict[str, Any]:
        """Counts, rule and threshold, as JSON values."""
        status = Counter(_column(self.kept, "larf_status") + _column(self.flagged, "larf_status"))
        unscorable = sum(score is None or not np.isfinite(score) for score in _column(self.flagged, "larf_score"))
        counts = {"rows": len(self.kept) + len(self.flagged), "kept": len(self.kept), "flagged": len(self.flagged)}
        return {
            "rule": self.rule,
            "threshold": self.threshold,
            "counts": {**counts, "unscorable": unscorable},
            "status": dict(sorted(status.items())),
        }

    def manifest(self) -> dict[str, Any]:
        """What ``selection.json`` records; see `larf_curate.manifests.SelectionManifest`."""
        return {"kind": SELECTION.name, "version": VERSION, **self.summary(), "scored": dict(self.scored)}

    def save(self, folder: str | Path) -> None:
        """Write both parts as Parquet, and ``selection.json`` last, so that a folder with it is whole.

        Raises:
            InputError: If the folder holds results of another kind.
        """
        check_folder(folder, SELECTION)
        (Path(folder) / SELECTION.file).unlink(missing_ok=True)
        for name, part in (("kept", self.kept), ("flagged", self.flagged)):
            write_parquet(part, Path(folder) / name)
        write_json(Path(folder) / SELECTION.file, self.manifest())

    @classmethod
    def load(cls, folder: str | Path) -> "Selection":
        """Read what `save` wrote.

        Raises:
            InputError: If the folder holds no whole selection.
        """
        manifest = check_manifest(read_json(Path(folder) / SELECTION.file), SELECTION, folder)
        kept, flagged = (read_parquet(Path(folder) / name) for name in ("kept", "flagged"))
        rule, threshold = manifest["rule"], manifest["threshold"]
        return cls(kept=kept, flagged=flagged, rule=rule, threshold=threshold, scored=manifest["scored"])


def select(
    dataset: Dataset,
    *,
    top_ratio: float | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    percentile: float | None = None,
    max_false_flags: float | None = None,
    profile: SafetyProfile | None = None,
    source: str = "",
    scored: Mapping[str, Any] | None = None,
) -> Selection:
    """Split a scored dataset by score; rows that could not be scored are flagged too, for a person to look at.

    Give exactly one rule. Equal scores are flagged in dataset order, so ``top_k`` is exact.

    Args:
        dataset: With the columns that `LarfScorer` writes.
        top_ratio: Share of the scored rows to flag, in [0, 1].
        top_k: Number of rows to flag.
        threshold: Flag scores at or above it.
        percentile: Flag scores at or above this percentile of all scores, in [0, 100].
        max_false_flags: Flag scores that at most this share of ordinary rows reach, in (0, 0.5], by the held-out scores
            of the profile's neutral rows.
        profile: The profile that scored the rows, for ``max_false_flags``; not needed with ``scored``.
        source: What the rows come from; part of their ids.
        scored: Manifest of the scored dataset, kept as provenance.

    Returns:
        The selection.

    Raises:
        InputError: If there is not exactly one rule, its value is out of range, or the dataset is not scored.
        ProfileMismatchError: If the profile is not the one that scored the rows, as their manifest says; without
            ``scored`` that cannot be seen.
    """
    values = (top_ratio, top_k, threshold, percentile, max_false_flags)
    rule = _rule(dict(zip(RULES, values, strict=True)))
    limit = threshold if max_false_flags is None else _neutral_limit(max_false_flags, profile, scored or {})
    if not isinstance(dataset, Dataset):
        raise InputError(f"wanted a datasets.Dataset, got {type(dataset).__name__}: give one split, loaded whole")
    if "larf_score" not in dataset.column_names or "larf_status" not in dataset.column_names:
        raise InputError(f"the dataset has no larf_score (columns: {dataset.column_names}): score it first")
    scores = _scores(dataset)
    ranked = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    chosen = ranked[: _count(rule, scores[ranked], limit)]
    unscorable = np.flatnonzero(np.isnan(scores))
    flags = np.zeros(len(scores), bool)
    flags[chosen] = flags[unscorable] = True
    lowest = float(scores[chosen[-1]]) if len(chosen) else None
    labelled = _label(dataset, flags, scores, ranked, lowest, source)
    return Selection(
        kept=labelled.select(np.flatnonzero(~flags)),
        flagged=labelled.select(np.concatenate([chosen, unscorable])),
        rule=rule,
        threshold=lowest,
        scored=dict(scored or {}),
    )


def _scores(dataset: Dataset) -> NDArray[np.float64]:
    """The scores, NaN where there is none."""
    scores, statuses = _column(dataset, "larf_score"), _column(dataset, "larf_status")
    numbers = all(score is None or isinstance(score, int | float) for score in scores)
    if not numbers or not all(isinstance(status, str) for status in statuses):
        raise InputError(
            "wanted a number or null in larf_score and a text in larf_status in every row, got others: score it anew"
        )
    values = np.array([np.nan if score is None else score for score in scores], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _rule(given: Mapping[str, float | None]) -> dict[str, float]:
    rule = {name: value for name, value in given.items() if value is not None}
    if len(rule) != 1:
        raise InputError(f"wanted exactly one of {', '.join(RULES)}, got {', '.join(rule) or 'none'}")
    name, value = next(iter(rule.items()))
    high = {"top_ratio": 1.0, "percentile": 100.0, "max_false_flags": 0.5}.get(name, LARGEST)
    low = -LARGEST if name == "threshold" else 0.0
    if not low <= value <= high or (name == "top_k" and not float(value).is_integer()):
        raise InputError(f"wanted {name} from {low:g} to {high:g}, got {value}")
    return rule


def _neutral_limit(rate: float, profile: SafetyProfile | None, scored: Mapping[str, Any]) -> float:
    """The score that a share of ordinary rows reaches at most.

    One more ordinary row takes each place among the n neutral ones with equal chance, so it reaches the k-th highest of
    them with chance k / (n + 1).
    """
    recorded = scored.get("profile") or {}
    if profile is not None:
        check_profile(profile, recorded)
    calibration = recorded.get("calibration") if profile is None else profile.calibration
    if not calibration:
        raise InputError("max_false_flags needs the neutral rows of the profile that scored the rows: give profile=…")
    rows, highest = calibration["neutral_rows"], calibration["highest"]
    place = min(int(rate * (rows + 1) + 1e-9), len(highest))
    if place < 1:
        raise InputError(
            f"{rows} neutral rows cannot tell a false-flag rate below {1 / (rows + 1):.4f}, got {rate:g}: "
            "ask for more, or build the profile with more neutral rows"
        )
    return float(highest[place - 1])


def _count(rule: Mapping[str, float], ranked: NDArray[np.float64], limit: float | None) -> int:
    """How many of the scores, sorted from high to low, the rule flags; ``limit`` is its threshold if it sets one."""
    name, value = next(iter(rule.items()))
    if not len(ranked):
        return 0
    if name == "top_ratio":
        return round(value * len(ranked))
    if name == "top_k":
        return min(int(value), len(ranked))
    lowest = float(np.percentile(ranked, value)) if limit is None else limit
    return int((ranked >= lowest).sum())


def _label(
    dataset: Dataset,
    flags: NDArray[np.bool_],
    scores: NDArray[np.float64],
    ranked: NDArray[np.intp],
    lowest: float | None,
    source: str,
) -> Dataset:
    """Add row ids, flags, reasons and percentiles."""
    percentiles = np.full(len(scores), np.nan)
    percentiles[ranked] = 100.0 * (len(ranked) - np.arange(len(ranked))) / max(len(ranked), 1)

    def reason(index: int, status: str) -> str | None:
        if not flags[index]:
            return None
        if np.isnan(percentiles[index]):
            return f"not scorable: {status}"
        return f"score {scores[index]:.4f} is at least {lowest:.4f} (percentile {percentiles[index]:.2f})"

    columns = {
        "larf_row_id": pa.array(_row_ids(dataset, source), pa.string()),
        "larf_flagged": pa.array(flags),
        "larf_reason": pa.array(
            [reason(i, status) for i, status in enumerate(_column(dataset, "larf_status"))], pa.string()
        ),
        "larf_percentile": pa.array(percentiles, pa.float32(), from_pandas=True),
    }
    bare = dataset.remove_columns([name for name in columns if name in dataset.column_names])
    added = Dataset(pa.table(columns))
    if not len(dataset):  # of which `datasets` forgets the columns
        features = Features({**bare.features, **added.features})
        return Dataset.from_dict({name: [] for name in features}, features=features)
    return concatenate_datasets([bare.with_format(None), added], axis=1)


def _column(dataset: Dataset, name: str) -> list[Any]:
    """A whole column as Python values; going through it value by value takes a hundred times as long."""
    return list(dataset.with_format(None)[name][:])


def _row_ids(dataset: Dataset, source: str) -> list[str]:
    if "larf_row_id" in dataset.column_names:
        ids = _column(dataset, "larf_row_id")
        if not all(isinstance(name, str) for name in ids) or len(set(ids)) < len(ids):
            raise InputError(
                "wanted a larf_row_id of its own for each row, a string: remove that column to number the rows anew"
            )
        return ids
    own = dataset.select_columns([name for name in dataset.column_names if not name.startswith(PREFIX)])
    batches = undecoded(own).iter(1000)
    rows = (dict(zip(batch, cells, strict=True)) for batch in batches for cells in zip(*batch.values(), strict=True))
    return [row_id(source, index, row) for index, row in enumerate(rows)]
