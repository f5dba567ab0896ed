"""Arms of a fine-tuning experiment: subsets of scored rows with equal numbers of rows and of training tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.columns import GUARD
from larf_curate.errors import InputError

Scores: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

ROWS_PER_STRATUM, MIN_STRATA = 8, 8
"""Rows taken from each stratum of length; if few rows are taken in all, the number of strata to aim for."""

TOLERANCE, MAX_BONUS, BISECTIONS = 0.02, 64.0, 16
"""Relative deviation of an arm's tokens that is tolerated; range and steps of the search for the length bonus."""

KINDS = ("top", "bottom", "random", "longest", "all", "kept", "thinned")


@dataclass(frozen=True)
class Arm:
    """A rule for choosing the rows to fine-tune on.

    ``top`` and ``bottom`` take the rows that a signal ranks highest and lowest, ``random`` random ones. These three
    have equal numbers of rows and, within 2 % where the rows allow it, equal numbers of training tokens, so that length
    alone cannot explain a difference between them. ``longest`` matches the number of rows, not of tokens: it is the
    baseline for a score that measures length. ``all`` takes every row, ``kept`` all but the signal's top share,
    ``thinned`` all but equally many random rows.

    Args:
        kind: Name of the rule.
        signal: Column of the score, or a field of ``larf_signals``; used by ``top``, ``bottom`` and ``kept``.
    """

    kind: str
    signal: str = "larf_score"

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """Parse ``kind`` or ``kind:signal``.

        Raises:
            InputError: If there is no such kind.
        """
        kind, _, signal = text.partition(":")
        if kind not in KINDS:
            raise InputError(f"there is no arm {text!r}: wanted {', '.join(KINDS)}, with a signal as in top:larf_score")
        return cls(kind, signal or "larf_score")

    @property
    def name(self) -> str:
        """``kind`` or ``kind:signal``, as `parse` reads it."""
        return f"{self.kind}:{self.signal}" if self.kind in ("top", "bottom", "kept") else self.kind

    @property
    def reads_scores(self) -> bool:
        """Whether the choice depends on the signal, even if only on which rows have a value."""
        return self.kind not in ("all", "thinned")


def signal_values(scored: Dataset, signal: str) -> Scores:
    """Values of a signal, shape (rows,), NaN for rows without one.

    Args:
        scored: Scored rows.
        signal: A column, a field of ``larf_signals``, or ``larf_guard`` for the guard model's probability that the
            answer is unsafe (``larf_guard.request`` for the request).

    Raises:
        InputError: If the dataset does not have the signal, or its values are not numbers.
    """
    fields = scored.features.get("larf_signals", {})
    values: list[Any]
    column, _, part = signal.partition(".")
    if column == GUARD and GUARD in scored.column_names and part in ("", "request", "answer"):
        values = [(cell or {}).get(part or "answer") for cell in scored[GUARD]]
    elif signal in scored.column_names:
        values = list(scored[signal])
    elif signal in fields:
        values = [(row or {}).get(signal) for row in scored["larf_signals"]]
    else:
        known = [name for name in ("larf_score", GUARD, *fields) if name in scored.column_names or name in fields]
        raise InputError(f"the scored rows have no signal {signal!r}: wanted one of {', '.join(known) or 'none'}")
    if any(not isinstance(value, int | float) and value is not None for value in values):
        raise InputError(f"the column {signal!r} is not numeric: wanted a score")
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def choose(
    arm: Arm, scores: Scores, tokens: Sequence[int], *, count: int, removed: float = 0.1, seed: int = 0
) -> Indices:
    """Choose the rows of an arm.

    Args:
        arm: The rule.
        scores: Values of the arm's signal, shape (rows,). Rows with NaN are chosen only by ``all`` and ``thinned``.
        tokens: Number of training tokens of each row; rows with 0 are never chosen.
        count: Number of rows of ``top``, ``bottom``, ``random`` and ``longest``.
        removed: Share of rows that ``kept`` and ``thinned`` leave out, in [0, 1).
        seed: Seed of ``random`` and ``thinned``.

    Returns:
        Row indices, ascending.

    Raises:
        InputError: If fewer than ``count`` rows have a score and an answer.
    """
    lengths = np.asarray(tokens)
    usable = np.flatnonzero((lengths > 0) & ~np.isnan(scores))
    shuffled = np.random.default_rng(seed).random(len(lengths))
    if arm.kind in ("all", "kept", "thinned"):
        return _thinned(arm, scores, np.flatnonzero(lengths > 0), shuffled, removed)
    if len(usable) < count:
        raise InputError(f"wanted {count} rows, got {len(usable)} with a score and an answer: lower the number of rows")
    if arm.kind == "longest":
        return np.sort(usable[np.argsort(-lengths[usable], kind="stable")[:count]])
    key = {"top": -scores, "bottom": scores, "random": shuffled}[arm.kind]
    return _length_matched(_unit_ranks(key[usable]), lengths[usable], usable, count)


def _thinned(arm: Arm, scores: Scores, rows: Indices, shuffled: Scores, removed: float) -> Indices:
    """All rows, or all but a share: the highest-scoring one for ``kept``, a random one for ``thinned``."""
    count = 0 if arm.kind == "all" else round(removed * len(rows))
    if arm.kind == "kept":  # select flags rows without a score too, so they are removed first
        order = rows[np.argsort(-np.nan_to_num(scores[rows], nan=np.inf), kind="stable")]
    else:
        order = rows[np.argsort(shuffled[rows], kind="stable")]
    return np.sort(order[count:])


def _length_matched(key: Scores, lengths: NDArray[Any], usable: Indices, count: int) -> Indices:
    """The rows with the smallest keys within narrow strata of length; each stratum gives the same number for any key.

    If lengths within a stratum still differ so much that the total misses the expected number of tokens by more than
    2 %, the key gets the smallest bonus per log length that corrects it, found by bisection.

    Args:
        key: Sort key of each usable row, from 0 to 1, smallest first.
        lengths: Training tokens of each usable row.
        usable: Index of each usable row in the dataset.
        count: Number of rows to choose.

    Returns:
        Row indices in the dataset, ascending.
    """
    by_length = np.argsort(lengths, kind="stable")
    strata = np.array_split(by_length, max(count // ROWS_PER_STRATUM, min(count // 2, MIN_STRATA), 1))
    ends = np.cumsum([len(stratum) for stratum in strata])
    # Rounding the cumulative sum instead of each quota makes the quotas add up to the count.
    quotas = np.diff(np.round(ends * count / len(usable)).astype(int), prepend=0)
    expected = sum(lengths[stratum].mean() * quota for stratum, quota in zip(strata, quotas, strict=True))

    def chosen(bonus: float) -> Indices:
        keys = key + bonus * np.log(lengths)
        parts = [s[np.argsort(keys[s], kind="stable")[:quota]] for s, quota in zip(strata, quotas, strict=True)]
        return np.concatenate(parts)

    def excess(bonus: float) -> float:
        return float(lengths[chosen(bonus)].sum() / expected - 1)

    sign = np.sign(excess(0.0))
    low, high = 0.0, 0.0 if abs(excess(0.0)) <= TOLERANCE else sign * MAX_BONUS
    for _ in range(BISECTIONS if high else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if sign * excess(middle) > TOLERANCE else (low, middle)
    return np.sort(usable[chosen(min(low, high, key=lambda bonus: abs(excess(bonus))))])


def _unit_ranks(values: Scores) -> Scores:
    """Ranks of values, scaled to [0, 1]: one bonus then fits signals of any scale."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)
