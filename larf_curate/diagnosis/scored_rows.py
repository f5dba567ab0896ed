"""What the scored rows of a dataset say about the profile that scored them."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from larf_curate.conversation.schemas import Row
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
"""Most rows that are read; of a longer dataset, so many spread evenly over it."""
SHARE = 99.0
"""Percentile of the neutral rows' distances beyond which a row counts as far."""


Columns = Mapping[str, str] | None
NAMED, BEGINNING = 3, 60
"""Most clusters that are named, and characters of a row that names one."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far rows lie from the neutral ones, at the profile's first layer.

    Args:
        shift: Distance of the two mean states, in standard deviations of the neutral states.
        far: Share of rows farther out (Mahalanobis distance) than 99 % of neutral rows; 0.01 is no drift.
    """

    shift: float
    far: float


@dataclass(frozen=True, kw_only=True)
class Beyond:
    """A cluster of rows in which no unsafe reference lies.

    Args:
        rows: Number of its rows among those read.
        texts: The beginnings of the rows nearest to its centre.
    """

    rows: int
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScoredRows:
    """Figures of a scored dataset.

    Args:
        rows: Number of rows.
        unscorable: Share of them without a score that is a number.
        truncated: Share of them that were scored without what lies beyond the profile's longest length.
        length: Spearman's correlation of the score with the row's length in characters; None if unknown.
        signal_lengths: The same of every signal in ``larf_signals``.
        agreement: Spearman's correlation of every two layers.
        drift: How far the rows lie from the neutral ones; None if no states were kept.
        coverage: What of the model's concepts the unsafe references cover at the profile's first layer.
        beyond: The largest clusters of rows in which none of them lies; empty if no states were kept.
    """

    rows: int
    unscorable: float
    truncated: float
    length: float | None
    signal_lengths: dict[str, float | None]
    agreement: list[list[float | None]]
    drift: Drift | None
    coverage: Coverage | None = None
    beyond: tuple[Beyond, ...] = ()


def read_scored(profile: SafetyProfile, scored: Scored | Dataset) -> ScoredRows:
    """Compare scored rows with the profile that scored them.

    Args:
        profile: What scored them.
        scored: The rows.

    Raises:
        ProfileMismatchError: If another profile scored them; of rows in memory, which name none, only other numbers of
            layers and other widths tell.
        InputError: If they are not scored.
    """
    if isinstance(scored, Scored):
        check_profile(profile, scored.manifest.get("profile"))
    data = scored.rows if isinstance(scored, Scored) else scored
    columns = (scored.manifest.get("source") or {}).get("columns") if isinstance(scored, Scored) else None
    if missing := {"larf_score", "larf_status", "larf_layer_scores"} - set(data.column_names):
        raise InputError(f"the dataset has no {', '.join(sorted(missing))}: score it first")
    kind = data.data.schema.field("larf_score").type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise InputError("the column larf_score holds no numbers: score the rows again")
    all_scores = np.array(data.with_format(None)["larf_score"][:], np.float64)
    statuses = Counter(data.with_format(None)["larf_status"][:])
    rows = _whole(_sample(data), profile)
    lengths = np.array([_length(row, columns) for row in rows], np.float64)
    known = np.isfinite(lengths)
    signals = rows[0].get("larf_signals") or {} if rows else {}
    scores = np.array([row["larf_score"] for row in rows], np.float64)
    return ScoredRows(
        rows=len(data),
        unscorable=float((~np.isfinite(all_scores)).mean()) if len(data) else 0.0,
        truncated=statuses["truncated"] / max(len(data), 1),
        length=rank_correlation(scores[known], lengths[known]),
        signal_lengths={
            name: rank_correlation(np.array([row["larf_signals"][name] for row in rows])[known], lengths[known])
            for name in signals
        },
        agreement=agreement(_matrix(rows, profile)),
        drift=_drift(profile, rows),
        coverage=_coverage(profile) if any(_has_state(row, profile) for row in rows) else None,
        beyond=_beyond(profile, rows, columns),
    )


def _sample(data: Dataset) -> list[Row]:
    """Some rows that have a score, spread evenly over the dataset."""
    bare = data.remove_columns([name for name in ("larf_neighbors",) if name in data.column_names])
    places = np.unique(np.linspace(0, len(data) - 1, min(SAMPLE, len(data))).astype(int))
    rows = bare.with_format(None).select(places)
    return [row for row in rows if row["larf_score"] is not None and np.isfinite(row["larf_score"])]


def _whole(rows: list[Row], profile: SafetyProfile) -> list[Row]:
    """The rows whose layer scores and signals are numbers; others are damaged, which is said."""
    layers = {len(row["larf_layer_scores"]) for row in rows if row["larf_layer_scores"] is not None}
    if layers - {len(profile.layers)}:
        raise ProfileMismatchError(
            f"wanted scores at the profile's {len(profile.layers)} layers, got rows with {sorted(layers)}: give the "
            "profile that scored them, or score the rows again"
        )
    whole = [row for row in rows if _finite([*(row["larf_layer_scores"] or [None]), *_signals(row)])]
    if len(whole) < len(rows):
        logger.warning(
            "%d of %d rows have a score but no whole layer scores or signals (null or NaN), and are left out here: "
            "score the dataset again",
            len(rows) - len(whole),
            len(rows),
        )
    return whole


def _signals(row: Row) -> list[Any]:
    """The values of a row's signals; None for one that lost them."""
    if "larf_signals" not in row:
        return []
    return [None] if row["larf_signals"] is None else list(row["larf_signals"].values())


def _has_state(row: Row, profile: SafetyProfile) -> bool:
    state = row.get("larf_state")
    if state is not None and len(state) != profile.width:
        raise ProfileMismatchError(
            f"wanted states of width {profile.width}, as the profile's are, got {len(state)}: give the profile that "
            "scored them"
        )
    return state is not None and _finite(state)


def _finite(values: Sequence[Any]) -> bool:
    return None not in values and bool(np.isfinite(np.asarray(values, np.float64)).all())


def _length(row: Row, columns: Columns) -> float:
    try:
        return len(text_of(row, columns))
    except ConversationError:
        return np.nan


def _matrix(rows: list[Row], profile: SafetyProfile) -> Vectors:
    return np.array([row["larf_layer_scores"] for row in rows], np.float32).reshape(len(rows), len(profile.layers))


def _drift(profile: SafetyProfile, rows: list[Row]) -> Drift | None:
    kept = [row["larf_state"] for row in rows if _has_state(row, profile)]
    if not kept:
        return None
    states, neutral = np.array(kept, np.float32), profile.states["neutral"]["last"][:, 0]
    limit = np.percentile(_held_out_distances(neutral), SHARE)
    shift = np.linalg.norm(states.mean(axis=0) - neutral.mean(axis=0))
    spread = float(np.sqrt(neutral.var(axis=0).sum())) or 1.0
    return Drift(shift=float(shift) / spread, far=float((_distances(neutral, states) > limit).mean()))


def _coverage(profile: SafetyProfile) -> Coverage:
    known = [profile.states[side]["last"][:, 0] for side in SIDES]
    return ConceptSpace(np.concatenate(known)).coverage(known[0])


def _beyond(profile: SafetyProfile, rows: list[Row], columns: Columns) -> tuple[Beyond, ...]:
    kept = [row for row in rows if _has_state(row, profile)]
    if not kept:
        return ()
    states = np.array([row["larf_state"] for row in kept], np.float32)
    found = uncovered(states, profile.states["unsafe"]["last"][:, 0])[:NAMED]
    texts = [tuple(_beginning(kept[place], columns) for place in cluster.nearest) for cluster in found]
    return tuple(Beyond(rows=cluster.rows, texts=named) for cluster, named in zip(found, texts, strict=True))


def _beginning(row: Row, columns: Columns) -> str:
    try:
        return " ".join(text_of(row, columns)[: 4 * BEGINNING].split())[:BEGINNING]
    except ConversationError:
        return "(not a conversation)"


def _held_out_distances(neutral: Vectors) -> Vectors:
    """Mahalanobis distance of every neutral row from the others."""
    places = fold_of(len(neutral))
    distances = np.zeros(len(neutral), np.float32)
    for fold in np.unique(places):
        distances[places == fold] = _distances(neutral[places != fold], neutral[places == fold])
    return distances


def _distances(neutral: Vectors, states: Vectors) -> Vectors:
    """Mahalanobis distance of states (n, d) from neutral rows (k, d)."""
    return np.asarray(np.linalg.norm(Whitening.fit(neutral[:, None])(states[:, None])[:, 0], axis=-1))
