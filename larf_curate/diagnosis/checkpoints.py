"""Whether another checkpoint of a profile's model, such as a quantised one, ranks scored rows as the model does.

Quantisation can change what safety signals read: https://arxiv.org/abs/2511.07842.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from larf_curate.columns import source_columns
from larf_curate.conversation.schemas import Row
from larf_curate.data.references import ReferenceSet
from larf_curate.data.tables import undecoded
from larf_curate.errors import InputError, ProfileMismatchError
from larf_curate.models.devices import resolve_device
from larf_curate.models.loading import load_reader
from larf_curate.models.source import identify, public_name
from larf_curate.profile import Rows, SafetyProfile, read_sides, rows_by_side
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.signals import SIGNALS
from larf_curate.stats import rank_correlation, top_overlap

SAMPLE = 1000
"""Maximum number of scored rows that are read with the other checkpoint, spread evenly over the dataset."""


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """How alike two checkpoints rank the same rows by one signal.

    Args:
        correlation: Spearman's rank correlation, in [-1, 1]; 1 means the same ranking. None if undefined.
        top_tenth: Share of the highest tenth of one ranking that is also in the other's, in [0, 1].
    """

    correlation: float | None
    top_tenth: float


@dataclass(frozen=True, kw_only=True)
class CheckpointAgreement:
    """Comparison of scored rows with their scores by another checkpoint.

    Args:
        model: Name of the checkpoint.
        rows: Number of rows that have a score by both.
        signals: Agreement by column: ``larf_score``, then every signal in ``larf_signals`` that reads the model.
    """

    model: str
    rows: int
    signals: dict[str, RankAgreement]


def checkpoint_agreement(
    profile: SafetyProfile, rows: Rows, scored: Scored, model: str, *, device: str | None = None
) -> CheckpointAgreement:
    """Score a sample of the scored rows with another checkpoint, and compare the rankings.

    The references are read again with the checkpoint, so that its scores are those of a profile built with it.

    Args:
        profile: The profile that scored the rows.
        rows: The rows it was built from.
        scored: The scored rows.
        model: Folder or Hub id of a checkpoint of the same architecture.
        device: A torch device; default: the first available accelerator.

    Raises:
        ModelError: If the checkpoint cannot be loaded.
        ProfileMismatchError: If its width or its chat template is not that of the profile.
        InputError: If it lacks a layer of the profile, or fewer than two rows have a score by both.
    """
    own = _sample(scored)
    names = [name for name in own[0]["larf_signals"] or {} if name in SIGNALS] if own else []
    other = _with_checkpoint(profile, rows, model, device)
    scorer = LarfScorer(other, signals=names, columns=scored.manifest["source"].get("columns"), device=device)
    source = [{name: row[name] for name in source_columns(row)} for row in own]
    pairs = [(a, b) for a, b in zip(own, scorer.score(source), strict=True) if b.score is not None]
    if len(pairs) < 2:
        raise InputError(f"wanted rows with a score by both checkpoints, got {len(pairs)}: score more rows first")
    values = {"larf_score": [(a["larf_score"], b.score) for a, b in pairs]}
    values |= {name: [(a["larf_signals"][name], (b.signals or {})[name]) for a, b in pairs] for name in names}
    return CheckpointAgreement(
        model=public_name(other.source.model_id),
        rows=len(pairs),
        signals={name: _agreement(*np.array(both, np.float64).T) for name, both in values.items()},
    )


def _agreement(one: Sequence[float], other: Sequence[float]) -> RankAgreement:
    return RankAgreement(correlation=rank_correlation(one, other), top_tenth=top_overlap(one, other))


def _sample(scored: Scored) -> list[Row]:
    """Rows with a finite score, from a sample spread evenly over the dataset, with media as they are stored."""
    data = scored.rows.with_format(None)
    bulky = [name for name in ("larf_neighbors", "larf_state") if name in data.column_names]
    indices = np.unique(np.linspace(0, len(data) - 1, min(SAMPLE, len(data))).astype(int))
    rows = undecoded(data.remove_columns(bulky).select(indices))
    return [row for row in rows if row["larf_score"] is not None and np.isfinite(row["larf_score"])]


def _with_checkpoint(profile: SafetyProfile, rows: Rows, model: str, device: str | None) -> SafetyProfile:
    """The profile that the checkpoint gives: same rows, layers and signal, states of the checkpoint."""
    source = replace(profile.source, model_id=identify(model), revision=None, adapter=None, strip_prefix=None)
    reader = load_reader(source, profile.layers, device=resolve_device(device), max_length=profile.max_length)
    if reader.width != profile.width:
        raise ProfileMismatchError(
            f"wanted a checkpoint of the profile's width {profile.width}, got {model} of width {reader.width}: give "
            "one of the same architecture"
        )
    refs = ReferenceSet(unsafe=rows.unsafe, safe=rows.safe, labels=(), source="")
    sides = rows_by_side(refs, rows.neutral, reader, match=any(profile.references["cut"].values()))
    return replace(profile, source=source, states=read_sides(reader, sides))
