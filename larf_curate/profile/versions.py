"""A new version of a profile, with rows that people decided, and how much better it ranks than the one before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.errors import ProfileError
from larf_curate.profile.decided import DECIDED_SIDES, REMOVED, Decided, concatenated, sampled, taken
from larf_curate.profile.profile import SafetyProfile
from larf_curate.states import States, Vectors
from larf_curate.stats import auroc, auroc_change_interval
from larf_curate.version import __version__

FOLDS = 5
"""Folds of the cross-validation over decided rows; fewer where there are fewer of a kind."""
SAFE, NEUTRAL = "safe", "neutral"
"""Sides of the references above which the unsafe ones should rank."""
MIN_PER_KIND = 10
"""Removed and kept rows below which there are no figures, since they would be too uncertain."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DecidedRows:
    """n rows that people decided, with what a profile needs of them.

    Args:
        states: Their states at the profile's layers, shape (n, layers, d) by position.
        sides: The side of each, one of `DECIDED_SIDES`, shape (n,).
        labels: Hazard category of each; those of kept rows are not used.
    """

    states: States
    sides: NDArray[np.str_]
    labels: tuple[str, ...]

    def side(self, name: str, rows: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Indices of those of some rows, given as a mask, that are on a side."""
        return np.flatnonzero(rows & (self.sides == name))


def add_decided(profile: SafetyProfile, rows: DecidedRows, added: Sequence[Mapping[str, Any]]) -> SafetyProfile:
    """Make a new version of a profile; no model is needed, and the given profile does not change.

    Of each side at most as many rows are stored as the profile has unsafe references, so that many decisions do not
    outweigh the references; with more, earlier versions' included, a fixed sample of them is.

    Args:
        profile: The profile.
        rows: The decided rows.
        added: The folders that they are from, as `larf_curate.manifests.AddedRecord`.

    Returns:
        The new version; its record ``decisions`` has figures on how the two versions rank.

    Raises:
        ProfileError: If the profile counts some pairs of references only (``top_k``), which decided rows are not.
    """
    if profile.top_k is not None:
        raise ProfileError(
            f"decided rows are no pairs, and this profile counts the {profile.top_k} nearest pairs of references "
            "(top_k): build it without --top-k"
        )
    decided, labels = _joined(profile, rows, np.ones(len(rows.sides), bool))
    earlier = profile.decisions or {"versions": [], "added": []}
    return replace(
        profile,
        states={**profile.states, **decided},
        decisions={
            "versions": [*earlier["versions"], profile.digest],
            "added": [*earlier["added"], *map(dict, added)],
            "rows": {side: len(states["last"]) for side, states in decided.items()},
            "labels": labels,
            "figures": {"decided": _change_on_decided(profile, rows), **_changes_on_references(profile, rows)},
        },
        package=f"larf-curate {__version__}",
    )


def _joined(
    profile: SafetyProfile, rows: DecidedRows, chosen: NDArray[np.bool_]
) -> tuple[dict[str, States], list[str]]:
    """The decided rows of a profile and further ones by side, at most so many, and the labels of the removed ones."""
    limit, decided, labels = len(profile.states["unsafe"]["last"]), dict(profile.decided), []
    for side in DECIDED_SIDES:
        new = rows.side(side, chosen)
        if not len(new) and side not in decided:
            continue
        states = taken(rows.states, new)
        states = concatenated(decided[side], states) if side in decided else states
        kept = sampled(states, limit)
        decided[side] = taken(states, kept)
        if side == REMOVED:
            every = [*(profile.decisions or {"labels": []})["labels"], *(rows.labels[index] for index in new)]
            labels = [every[index] for index in kept]
    return decided, labels


def _change_on_decided(profile: SafetyProfile, rows: DecidedRows) -> dict[str, float] | None:
    """How well removed rows are ranked above kept ones that were held out; None with too few."""
    removed = rows.sides == REMOVED
    smaller = min(int(removed.sum()), int((~removed).sum()))
    if smaller < MIN_PER_KIND:
        return None
    from sklearn.model_selection import StratifiedKFold  # takes a second

    before, after = _scores(profile, profile.decided, rows.states), np.empty(len(removed))
    folds = StratifiedKFold(min(FOLDS, smaller), shuffle=True, random_state=0)
    for train, test in folds.split(removed, removed):
        decided, _ = _joined(profile, rows, np.isin(np.arange(len(removed)), train))
        after[test] = _scores(profile, decided, taken(rows.states, test))
    return _change((before[removed], before[~removed]), (after[removed], after[~removed]))


def _scores(profile: SafetyProfile, decided: Decided, states: States) -> Vectors:
    """Scores of rows by the profile's signal with some decided rows."""
    signal = profile.fit_of(decided=decided)(profile.references_for())
    return np.asarray(signal(states).mean(axis=1))


def _changes_on_references(profile: SafetyProfile, rows: DecidedRows) -> dict[str, dict[str, float] | None]:
    """How well unsafe references are ranked above safe and above neutral ones, all held out; None with too few."""
    from larf_curate.signals.held_out import held_out

    references = profile.references_for()
    if min(len(side["last"]) for side in (references.unsafe, references.safe)) < MIN_PER_KIND:
        return {SAFE: None, NEUTRAL: None}
    decided, _ = _joined(profile, rows, np.ones(len(rows.sides), bool))
    before, after = (held_out(profile.fit_of(decided=version), references) for version in (profile.decided, decided))
    return {
        name: _change(*((each.unsafe.mean(axis=1), getattr(each, name).mean(axis=1)) for each in (before, after)))
        for name in (SAFE, NEUTRAL)
    }


def _change(before: tuple[Vectors, Vectors], after: tuple[Vectors, Vectors]) -> dict[str, float]:
    """AUROC of high over low scores before and after, and the interval of the change; see `ChangeRecord`."""
    low, high = auroc_change_interval(before, after)
    return {
        "before": round(auroc(*before), 4),
        "after": round(auroc(*after), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }
