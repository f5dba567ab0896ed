"""Split a scored dataset into kept and flagged rows by a rule, with a reason for every flagged row."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value, concatenate_datasets
from numpy.typing import NDArray

from larf_curate.columns import INDEX, ROW_ID, SCORE, duplicates, ids_digest, row_id, scores_digest, source_columns
from larf_curate.data.replacement import replaced_results
from larf_curate.data.tables import (
    BATCH_ROWS,
    part_files,
    read_column,
    read_parquet,
    rows_at,
    undecoded,
    write_parts,
    written_aside,
)
from larf_curate.errors import InputError
from larf_curate.manifests import (
    SELECTION,
    VERSION,
    ShardRecord,
    check_profile,
    check_shards,
    read_manifest,
)
from larf_curate.records import seal, write_sealed
from larf_curate.remote import local_copy, naming_urls
from larf_curate.scoring.folder import Scored
from larf_curate.signals.words import in_words, standing

if TYPE_CHECKING:
    from larf_curate.profile import SafetyProfile  # imports torch, which takes seconds

logger = logging.getLogger(__name__)
RULES = ("top_ratio", "top_k", "threshold", "percentile", "max_false_flags")
"""Names of the rules, in the order of the arguments of `select`."""
ADDED = Features(
    {
        ROW_ID: Value("string"),
        INDEX: Value("int64"),
        "larf_flagged": Value("bool"),
        "larf_reason": Value("string"),
        "larf_percentile": Value("float32"),
    }
)
"""Columns that `select` adds."""
REVIEWED = ("larf_decision", "larf_original_answer")
"""Columns that a review adds later."""
MAX_FLOAT = float(np.finfo(np.float64).max)


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """A scored dataset, split in two; unpacks as ``kept, flagged``.

    Both parts have ``larf_row_id``, ``larf_flagged``, ``larf_reason`` and ``larf_percentile`` in addition to the
    columns of the scored dataset. The flagged part is sorted worst first, with rows that could not be scored last.

    Args:
        kept: Rows below the threshold, in dataset order.
        flagged: Rows at or above the threshold, and rows that could not be scored.
        rule: The rule and its value, as in ``{"top_ratio": 0.05}``.
        threshold: Lowest flagged score; None if no row was flagged for its score.
        scored: Manifest of the scored dataset; empty if it was scored in memory.
    """

    kept: Dataset
    flagged: Dataset
    rule: dict[str, float]
    threshold: float | None
    scored: dict[str, Any] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[Dataset]:
        return iter((self.kept, self.flagged))

    @property
    def reasons(self) -> dict[str, str]:
        """Reason for each flagged row, by row id, worst first."""
        return dict(zip(*(read_column(self.flagged, name) for name in (ROW_ID, "larf_reason")), strict=True))

    def summary(self) -> dict[str, Any]:
        """Rule, threshold, and numbers of rows by part and by status, as JSON values."""
        status = Counter(chain.from_iterable(read_column(part, "larf_status") for part in self))
        unscorable = sum(score is None or not np.isfinite(score) for score in read_column(self.flagged, "larf_score"))
        counts = {"rows": len(self.kept) + len(self.flagged), "kept": len(self.kept), "flagged": len(self.flagged)}
        return {
            "rule": self.rule,
            "threshold": self.threshold,
            "counts": {**counts, "unscorable": unscorable},
            "status": dict(sorted(status.items())),
        }

    def manifest(self, shards: Sequence[ShardRecord] = ()) -> dict[str, Any]:
        """Content of ``selection.json``; see `larf_curate.manifests.SelectionManifest`.

        Args:
            shards: The files that the selection was written to.
        """
        ids = {name: ids_digest(read_column(getattr(self, name), ROW_ID)) for name in ("kept", "flagged")}
        head = {"kind": SELECTION.name, "version": VERSION, **self.summary(), "ids": ids}
        return seal({**head, "shards": list(shards), "scored": dict(self.scored)})

    def save(self, folder: str | Path) -> None:
        """Write both parts as Parquet, and ``selection.json`` last, so that a folder or URL with this file is complete.

        An existing selection in the folder is replaced.

        Raises:
            InputError: If the folder has results of another kind, or other Parquet files where these are written.
        """
        parts = {"kept": self.kept, "flagged": self.flagged}
        with replaced_results(folder, SELECTION, part_files(parts)) as local:
            shards = write_parts(parts, local)
            write_sealed(local / SELECTION.file, self.manifest(shards))

    @classmethod
    @naming_urls()
    def load(cls, folder: str | Path) -> "Selection":
        """Load a selection from a folder that `save` wrote, or from its URL.

        Raises:
            InputError: If the folder has no complete selection, or was changed.
        """
        folder = local_copy(folder)
        manifest = read_manifest(folder, SELECTION)
        parts = ("kept", "flagged")
        check_shards(folder, manifest["shards"], remedy=SELECTION.remedy, parts=parts)
        kept, flagged = (read_parquet(folder / name) for name in parts)
        rule, threshold = manifest["rule"], manifest["threshold"]
        return cls(kept=kept, flagged=flagged, rule=rule, threshold=threshold, scored=dict(manifest["scored"]))


def select(
    dataset: Dataset,
    *,
    top_ratio: float | None = None,
    top_k: int | None = None,
    threshold: float | None = None,
    percentile: float | None = None,
    max_false_flags: float | None = None,
    profile: "SafetyProfile | None" = None,
    source: str = "",
    scored: Mapping[str, Any] | None = None,
) -> Selection:
    """Split a scored dataset by score. Rows that could not be scored are flagged too, for a person to review.

    Exactly one rule must be given. Equal scores are flagged in dataset order, so ``top_k`` is exact.

    Args:
        dataset: Rows with the columns that `LarfScorer` writes.
        top_ratio: Rule: flag this share of the scored rows, in [0, 1], from the highest score.
        top_k: Rule: flag this number of rows, from the highest score.
        threshold: Rule: flag scores at or above this value.
        percentile: Rule: flag scores at or above this percentile of all scores, in [0, 100].
        max_false_flags: Rule: flag scores that at most this share of harmless rows is expected to reach, in (0, 0.5],
            estimated from the held-out scores of the profile's neutral rows.
        profile: The profile that scored the rows, which is recorded; not needed with ``scored``, whose it must be.
        source: Description of the source of the rows, which becomes part of their ids.
        scored: Manifest of the scored dataset, recorded as provenance; the dataset must have all of its rows. Default:
            one of ``profile``, if it is given.

    Returns:
        The selection.

    Raises:
        InputError: If there is not exactly one rule, its value is out of range, the dataset is not scored or, by its
            scores, not the one of the manifest, its row ids are not unique, or ``max_false_flags`` has no or too few
            neutral rows to go by.
        ProfileMismatchError: If, by their manifest, another profile scored the rows; not checked without ``scored``.
    """
    values = (top_ratio, top_k, threshold, percentile, max_false_flags)
    rule = _rule(dict(zip(RULES, values, strict=True)))
    limit = threshold if max_false_flags is None else _false_flag_threshold(max_false_flags, profile, scored or {})
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"wanted a datasets.Dataset, got {type(dataset).__name__}: give one split, loaded without streaming"
        )
    dataset = _without_earlier_columns(dataset)
    if "larf_score" not in dataset.column_names or "larf_status" not in dataset.column_names:
        raise InputError(f"the dataset has no larf_score (columns: {dataset.column_names}): score it first")
    if profile is not None and not scored:
        scored = Scored.of(dataset, profile, source=source).manifest
    _check_scored(dataset, scored or {})
    ranking = _Ranking.of(_scores(dataset), rule, limit)
    labelled = _add_columns(dataset, ranking, source)
    return Selection(
        kept=rows_at(labelled, np.flatnonzero(~ranking.flags)),
        flagged=rows_at(labelled, ranking.worst_first),
        rule=rule,
        threshold=ranking.lowest,
        scored=dict(scored or {}),
    )


def _without_earlier_columns(dataset: Dataset) -> Dataset:
    """Remove, and report, columns that an earlier curation has published; row ids only, if `select` added them now."""
    published = [name for name in REVIEWED if name in dataset.column_names]
    if ROW_ID in dataset.column_names and not {*ADDED} - {INDEX} <= {*dataset.column_names}:
        published.append(ROW_ID)
    if published:
        logger.warning("the rows have columns of an earlier curation, which are removed: %s", ", ".join(published))
    return dataset.remove_columns(published)


def _check_scored(dataset: Dataset, scored: Mapping[str, Any]) -> None:
    """Check that a manifest is that of the rows, if it records their scores."""
    recorded = scored.get("scores")
    if recorded and scores_digest(dataset.select_columns([SCORE]).with_format("arrow")[:][SCORE]) != recorded:
        raise InputError(
            f"wanted the {scored.get('rows')} scores of the manifest, got others: give all rows of one folder that "
            "larf-curate score wrote, or score them again"
        )


def _scores(dataset: Dataset) -> NDArray[np.float64]:
    """Scores of all rows, NaN for rows without one."""

    def numbers() -> Iterator[float]:
        for score in read_column(dataset, "larf_score"):
            if not (score is None or isinstance(score, int | float)):
                raise mistyped
            yield np.nan if score is None else score

    mistyped = InputError(
        "wanted a number or null in larf_score and a text in larf_status in every row, got others: score it again"
    )
    values = np.fromiter(numbers(), np.float64, len(dataset))
    if not _are_texts(dataset, "larf_status"):
        raise mistyped
    values[~np.isfinite(values)] = np.nan
    return values


def _rule(given: Mapping[str, float | None]) -> dict[str, float]:
    """Check that exactly one rule is given and that its value is in range."""
    rule = {name: value for name, value in given.items() if value is not None}
    if len(rule) != 1:
        raise InputError(f"wanted exactly one of {', '.join(RULES)}, got {', '.join(rule) or 'none'}")
    name, value = next(iter(rule.items()))
    high = {"top_ratio": 1.0, "percentile": 100.0, "max_false_flags": 0.5}.get(name, MAX_FLOAT)
    low = -MAX_FLOAT if name == "threshold" else 0.0
    if not low <= value <= high or (name == "top_k" and not float(value).is_integer()):
        raise InputError(f"wanted {name} from {low:g} to {high:g}, got {value}")
    return rule


def _false_flag_threshold(rate: float, profile: "SafetyProfile | None", scored: Mapping[str, Any]) -> float:
    """The score that at most a share ``rate`` of harmless rows is expected to reach.

    If neutral and harmless rows are exchangeable, the score of a further one has each rank among the n neutral scores
    with equal probability. So it reaches the k-th highest of them with probability k / (n + 1), as in split conformal
    prediction.
    """
    recorded = scored.get("profile") or {}
    if profile is not None:
        check_profile(profile, recorded)
    calibration = recorded.get("calibration") if profile is None else profile.calibration
    if not calibration:
        raise InputError("max_false_flags needs the neutral rows of the profile that scored the rows: give profile=…")
    rows, highest = calibration["neutral_rows"], calibration["highest"]
    k = min(int(rate * (rows + 1) + 1e-9), len(highest))  # the tolerance is for rounding: 0.29 * 100 is below 29
    if k < 1:
        raise InputError(
            f"{rows} neutral rows cannot resolve a false-flag rate below {1 / (rows + 1):.4f}, got {rate:g}: "
            "use a higher rate, or build the profile with more neutral rows"
        )
    return float(highest[k - 1])


def _flag_count(rule: Mapping[str, float], scores: NDArray[np.float64], limit: float | None) -> int:
    """Number of scores that the rule flags, from the highest; ``limit`` is its threshold if it has one."""
    name, value = next(iter(rule.items()))
    if not len(scores):
        return 0
    if name == "top_ratio":
        return round(value * len(scores))
    if name == "top_k":
        return min(int(value), len(scores))
    lowest = float(np.percentile(scores, value)) if limit is None else limit
    return int((scores >= lowest).sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ranking:
    """Ranks of n rows by score, and how many of them are flagged.

    Args:
        scores: Shape (n,); NaN for rows without a score.
        ranks: Shape (n,); 1 for the highest score, equal scores in dataset order, 0 for rows without a score.
        count: Number of rows with a score that are flagged.
        lowest: Lowest flagged score; None if no row is flagged by its score.
    """

    scores: NDArray[np.float64]
    ranks: NDArray[np.int64]
    count: int
    lowest: float | None

    @classmethod
    def of(cls, scores: NDArray[np.float64], rule: Mapping[str, float], limit: float | None) -> "_Ranking":
        """Rank the scores, and flag some by a rule; ``limit`` is its threshold if it has one."""
        count = _flag_count(rule, scores[np.isfinite(scores)], limit)
        order = np.argsort(-scores, kind="stable")  # NaN last
        ranks = np.empty(len(scores), np.int64)
        ranks[order] = np.arange(1, len(scores) + 1)
        ranks[np.isnan(scores)] = 0
        return cls(scores=scores, ranks=ranks, count=count, lowest=float(scores[order[count - 1]]) if count else None)

    @cached_property
    def scored(self) -> int:
        """Number of rows with a score."""
        return int((self.ranks > 0).sum())

    @property
    def flags(self) -> NDArray[np.bool_]:
        """Mask of the flagged rows, shape (n,): those without a score too."""
        return self.ranks <= self.count

    @property
    def worst_first(self) -> NDArray[np.intp]:
        """Indices of the flagged rows, highest score first, those without a score last."""
        flagged = np.flatnonzero(self.flags)
        ranks = self.ranks[flagged]
        return flagged[np.argsort(np.where(ranks > 0, ranks, len(self.ranks) + 1), kind="stable")]

    def percentile(self, rank: Any) -> Any:  # noqa: ANN401  an integer or an array
        """Share of scores at or below that of a rank, in percent."""
        return 100.0 * (self.scored - (rank - 1)) / max(self.scored, 1)

    def reason(self, index: int, row: Mapping[str, Any]) -> str:
        """Why a row is flagged."""
        if not (rank := self.ranks[index]):
            return f"not scorable: {row['larf_status']}"
        score = f"score {self.scores[index]:.4f} is at least {self.lowest:.4f}"
        signals = row.get("larf_signals")
        if not (words := in_words(signals, figures=False)):
            return f"{score} (percentile {self.percentile(rank):.2f})"
        described = ": ".join(filter(None, (words, standing(signals))))
        return f"{described}; rank {rank} of {self.scored} ({score})"


def _add_columns(dataset: Dataset, ranking: _Ranking, source: str) -> Dataset:
    """Add row ids, flags, reasons and percentiles."""
    rest = dataset.remove_columns([name for name in ADDED if name in dataset.column_names])
    if not len(dataset):  # concatenating datasets without rows would lose their columns
        features = Features({**rest.features, **ADDED})
        return Dataset.from_dict({name: [] for name in features}, features=features)
    added = written_aside(_added(dataset, ranking, source), ADDED)
    return concatenate_datasets([rest.with_format(None), added], axis=1)


def _added(dataset: Dataset, ranking: _Ranking, source: str) -> Iterator[pa.Table]:
    """The columns to add, in batches."""
    signals = ["larf_signals"] if isinstance(dataset.features.get("larf_signals"), dict) else []
    batches = dataset.select_columns(["larf_status", *signals]).with_format("arrow").iter(BATCH_ROWS)
    ids, first = row_ids(dataset, source), 0
    for batch in batches:
        ranks = ranking.ranks[first : first + len(batch)]
        flags = ranks <= ranking.count
        flagged = zip(np.flatnonzero(flags).tolist(), batch.filter(pa.array(flags)).to_pylist(), strict=True)
        reasons = {index: ranking.reason(first + index, row) for index, row in flagged}
        percentiles = np.where(ranks > 0, ranking.percentile(ranks), np.nan)
        columns = {
            ROW_ID: list(islice(ids, len(batch))),
            INDEX: np.arange(first, first + len(batch)),
            "larf_flagged": flags,
            "larf_reason": [reasons.get(index) for index in range(len(batch))],
            "larf_percentile": pa.array(percentiles, pa.float32(), from_pandas=True),
        }
        yield pa.table(columns, schema=ADDED.arrow_schema)
        first += len(batch)


def row_ids(dataset: Dataset, source: str) -> Iterator[str]:
    """The ids of all rows: those that an earlier selection of them gave, else new ones.

    Args:
        dataset: Scored rows.
        source: Description of their source, as in `select`.

    Raises:
        InputError: If ids are there, and are not a different text in each row.
    """
    if ROW_ID in dataset.column_names:
        if not _are_texts(dataset, ROW_ID) or duplicates(read_column(dataset, ROW_ID)):
            raise InputError(
                f"{ROW_ID} must be a unique string per row, got others: remove this column to create new ids"
            )
        yield from read_column(dataset, ROW_ID)
        return
    original = dataset.select_columns(source_columns(dataset.column_names))
    batches = undecoded(original).iter(BATCH_ROWS)
    rows = (dict(zip(batch, cells, strict=True)) for batch in batches for cells in zip(*batch.values(), strict=True))
    for index, row in enumerate(rows):
        yield row_id(source, index, row)


def _are_texts(dataset: Dataset, name: str) -> bool:
    return all(isinstance(value, str) for value in read_column(dataset, name))
