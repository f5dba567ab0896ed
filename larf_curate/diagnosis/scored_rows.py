"""Figures of a scored dataset: length dependence, drift from the neutral rows and coverage by the references."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from larf_curate.conversation.schemas import Row
from larf_curate.data.tables import read_column
from larf_curate.diagnosis.guard import GuardComparison, compare_guard
from larf_curate.errors import ConversationError, InputError, ProfileMismatchError
from larf_curate.manifests import check_profile
from larf_curate.profile import SIDES, SafetyProfile
from larf_curate.scoring.coverage import ConceptSpace, Coverage, uncovered
from larf_curate.scoring.folder import Scored
from larf_curate.signals.baselines import text_of
from larf_curate.signals.centred import Whitening
from larf_curate.signals.held_out import fold_of
from larf_curate.states import Vectors
from larf_curate.stats import agreement, rank_correlation

logger = logging.getLogger(__name__)
SAMPLE = 5000
"""Maximum number of rows that are read; a longer dataset is sampled evenly."""
FAR_PERCENTILE = 99.0
"""Percentile of the neutral rows' held-out distances above which a row counts as far."""
MAX_CLUSTERS, EXCERPT = 3, 60
"""Maximum number of clusters that are described, and characters shown of each row that describes one."""

Columns = Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Distribution shift of scored rows against the neutral rows, at the profile's first layer; higher is worse.

    Args:
        shift: Euclidean distance of the two mean states, in standard deviations of the neutral states; at least 0.
        far: Share of rows whose Mahalanobis distance from the neutral rows exceeds that of 99 % of held-out neutral
            rows; in [0, 1], about 0.01 without drift.
    """

    shift: float
    far: float


@dataclass(frozen=True, kw_only=True)
class UncoveredCluster:
    """A cluster of rows that contains no unsafe reference.

    Args:
        rows: Number of its rows among those read.
        texts: Excerpts of the rows nearest to its centre.
    """

    rows: int
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Figures of a scored dataset; correlations and states are those of a sample of at most `SAMPLE` rows.

    Args:
        rows: Number of rows.
        unscorable: Share of rows without a finite score, in [0, 1].
        truncated: Share of rows longer than the profile's maximum length, scored without their middle, in [0, 1].
        length: Spearman's correlation of the score with the row's length in characters, in [-1, 1]; far from 0 is bad.
            None if undefined.
        signal_lengths: The same for every signal in ``larf_signals``.
        agreement: Matrix of Spearman's correlations between layers; None where undefined.
        drift: Distribution shift against the neutral rows; None if no states were stored.
        coverage: Coverage of the profile's concepts by the unsafe references at its first layer; None if no states
            were stored.
        beyond: The largest clusters of rows that contain no unsafe reference; empty if no states were stored.
        guard: Comparison with the guard model that judged all rows; None if none did.
    """

    rows: int
    unscorable: float
    truncated: float
    length: float | None
    signal_lengths: dict[str, float | None]
    agreement: list[list[float | None]]
    drift: Drift | None
    coverage: Coverage | None = None
    beyond: tuple[UncoveredCluster, ...] = ()
    guard: GuardComparison | None = None


def read_scored(profile: SafetyProfile, scored: Scored | Dataset) -> ScoredRows:
    """Compare scored rows with the profile that scored them.

    Args:
        profile: The profile that scored the rows.
        scored: The scored rows.

    Raises:
        ProfileMismatchError: If another profile scored the rows. Rows in memory name no profile; for them only a
            different number of layers or state width is detected.
        InputError: If the rows are not scored.
    """
    if isinstance(scored, Scored):
        check_profile(profile, scored.manifest.get("profile"))
    data = scored.rows if isinstance(scored, Scored) else scored
    columns = (scored.manifest.get("source") or {}).get("columns") if isinstance(scored, Scored) else None
    if missing := {"larf_score", "larf_status", "larf_layer_scores"} - set(data.column_names):
        raise InputError(f"the dataset has no {', '.join(sorted(missing))}: score it first")
    kind = data.data.schema.field("larf_score").type
    # A column of nulls only has the type null.
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InputError("the column larf_score is not numeric: score the rows again")
    unscorable = sum(score is None or not np.isfinite(score) for score in read_column(data, "larf_score"))
    statuses = Counter(read_column(data, "larf_status"))
    rows = _complete(_sample(data), profile)
    lengths = np.array([_length(row, columns) for row in rows], np.float64)
    known = np.isfinite(lengths)
    signals = rows[0].get("larf_signals") or {} if rows else {}
    scores = np.array([row["larf_score"] for row in rows], np.float64)
    return ScoredRows(
        rows=len(data),
        unscorable=unscorable / max(len(data), 1),
        truncated=statuses["truncated"] / max(len(data), 1),
        length=rank_correlation(scores[known], lengths[known]),
        signal_lengths={
            name: rank_correlation(np.array([row["larf_signals"][name] for row in rows])[known], lengths[known])
            for name in signals
        },
        agreement=agreement(_layer_scores(rows, profile)),
        drift=_drift(profile, rows),
        coverage=_coverage(profile) if any(_has_state(row, profile) for row in rows) else None,
        beyond=_uncovered_clusters(profile, rows, columns),
        guard=compare_guard(data),
    )


def _sample(data: Dataset) -> list[Row]:
    """Rows with a score from a sample spread evenly over the dataset."""
    # Nested columns are slow to decode, and the neighbours are not used here.
    data = data.remove_columns([name for name in ("larf_neighbors",) if name in data.column_names])
    indices = np.unique(np.linspace(0, len(data) - 1, min(SAMPLE, len(data))).astype(int))
    rows = data.with_format(None).select(indices)
    return [row for row in rows if row["larf_score"] is not None and np.isfinite(row["larf_score"])]


def _complete(rows: list[Row], profile: SafetyProfile) -> list[Row]:
    """The rows whose layer scores and signals are all finite; the others are damaged and dropped with a warning."""
    layers = {len(row["larf_layer_scores"]) for row in rows if row["larf_layer_scores"] is not None}
    if layers - {len(profile.layers)}:
        raise ProfileMismatchError(
            f"wanted scores at the profile's {len(profile.layers)} layers, got rows with {sorted(layers)}: give the "
            "profile that scored them, or score the rows again"
        )
    complete = [row for row in rows if _finite([*(row["larf_layer_scores"] or [None]), *_signals(row)])]
    if len(complete) < len(rows):
        logger.warning(
            "%d of %d rows have a score but incomplete layer scores or signals (null or NaN), and are left out here: "
            "score the dataset again",
            len(rows) - len(complete),
            len(rows),
        )
    return complete


def _signals(row: Row) -> list[Any]:
    """Values of a row's signals; a single None if the column is there and the row has none."""
    if "larf_signals" not in row:
        return []
    return [None] if row["larf_signals"] is None else list(row["larf_signals"].values())


def _has_state(row: Row, profile: SafetyProfile) -> bool:
    """Whether a row has a finite state; raises if its width is not the profile's."""
    state = row.get("larf_state")
    if state is not None and len(state) != profile.width:
        raise ProfileMismatchError(
            f"wanted states of the profile's width {profile.width}, got {len(state)}: give the profile that scored the "
            "rows"
        )
    return state is not None and _finite(state)


def _finite(values: Sequence[Any]) -> bool:
    return None not in values and bool(np.isfinite(np.asarray(values, np.float64)).all())


def _length(row: Row, columns: Columns) -> float:
    """Length of a row's text in characters; NaN if it is not a conversation."""
    try:
        return len(text_of(row, columns))
    except ConversationError:
        return np.nan


def _layer_scores(rows: list[Row], profile: SafetyProfile) -> Vectors:
    """Layer scores, shape (rows, layers)."""
    return np.array([row["larf_layer_scores"] for row in rows], np.float32).reshape(len(rows), len(profile.layers))


def _drift(profile: SafetyProfile, rows: list[Row]) -> Drift | None:
    stored = [row["larf_state"] for row in rows if _has_state(row, profile)]
    if not stored:
        return None
    states, neutral = np.array(stored, np.float32), profile.states["neutral"]["last"][:, 0]
    # In-sample distances would be too small, since the covariance is fitted to the same few rows.
    limit = np.percentile(_held_out_distances(neutral), FAR_PERCENTILE)
    shift = np.linalg.norm(states.mean(axis=0) - neutral.mean(axis=0))
    # Neutral rows with equal states have no spread; the distance itself is then reported.
    spread = float(np.sqrt(neutral.var(axis=0).sum())) or 1.0
    return Drift(shift=float(shift) / spread, far=float((_distances(neutral, states) > limit).mean()))


def _coverage(profile: SafetyProfile) -> Coverage:
    """Coverage of the concepts of all reference states by the unsafe ones."""
    states = [profile.states[side]["last"][:, 0] for side in SIDES]
    return ConceptSpace(np.concatenate(states)).coverage(states[0])


def _uncovered_clusters(profile: SafetyProfile, rows: list[Row], columns: Columns) -> tuple[UncoveredCluster, ...]:
    """The largest clusters of rows without an unsafe reference, described by their most central rows."""
    stored = [row for row in rows if _has_state(row, profile)]
    if not stored:
        return ()
    states = np.array([row["larf_state"] for row in stored], np.float32)
    clusters = uncovered(states, profile.states["unsafe"]["last"][:, 0])[:MAX_CLUSTERS]
    texts = [tuple(_excerpt(stored[index], columns) for index in cluster.nearest) for cluster in clusters]
    return tuple(UncoveredCluster(rows=each.rows, texts=named) for each, named in zip(clusters, texts, strict=True))


def _excerpt(row: Row, columns: Columns) -> str:
    """First characters of a row's text, with whitespace collapsed."""
    try:
        # Cut before splitting, since a row may be megabytes long.
        return " ".join(text_of(row, columns)[: 4 * EXCERPT].split())[:EXCERPT]
    except ConversationError:
        return "(not a conversation)"


def _held_out_distances(neutral: Vectors) -> Vectors:
    """Mahalanobis distance of each neutral row from the neutral rows of the other folds, shape (n,)."""
    folds = fold_of(len(neutral))
    distances = np.zeros(len(neutral), np.float32)
    for fold in np.unique(folds):
        distances[folds == fold] = _distances(neutral[folds != fold], neutral[folds == fold])
    return distances


def _distances(neutral: Vectors, states: Vectors) -> Vectors:
    """Mahalanobis distance of states of shape (n, d) from neutral states of shape (k, d); shape (n,)."""
    # In the whitened space the Mahalanobis distance is the Euclidean norm.
    return np.asarray(np.linalg.norm(Whitening.fit(neutral[:, None])(states[:, None])[:, 0], axis=-1))
