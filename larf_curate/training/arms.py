"""Arms of a fine-tuning experiment: subsets of scored rows with equal numbers of rows and of training tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
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
_QUANTILE = re.compile(r"q(\d+)of(\d+)(-matched)?")


@dataclass(frozen=True)
class Arm:
    """A rule for choosing the rows to fine-tune on.

    ``top`` and ``bottom`` take the rows that a signal ranks highest and lowest, ``random`` random ones. These three
    have equal numbers of rows and, within 2 % where the rows allow it, equal numbers of training tokens, so that length
    alone cannot explain a difference between them. ``longest`` matches the number of rows, not of tokens: it is the
    baseline for a score that measures length. ``all`` takes every row, ``kept`` all but the signal's top share,
    ``thinned`` all but equally many random rows. ``q2of5`` takes rows of the second fifth of the ranking, the fifth
    fifth being the highest; ``q2of5-matched`` ranks within strata of length, so that the fifths have equal lengths.

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
        found = _QUANTILE.fullmatch(kind)
        if kind not in KINDS and not (found and 1 <= int(found[1]) <= int(found[2])):
            raise InputError(
                f"there is no arm {text!r}: wanted {', '.join(KINDS)}, q1of5, with a signal as in top:larf_score"
            )
        return cls(kind, signal or "larf_score")

    @property
    def name(self) -> str:
        """``kind`` or ``kind:signal``, as `parse` reads it."""
        return f"{self.kind}:{self.signal}" if self.kind in ("top", "bottom", "kept") or self.quantile else self.kind

    @property
    def quantile(self) -> tuple[int, int] | None:
        """Number of the quantile, from 1 (lowest scores), and number of all quantiles; None for other kinds."""
        found = _QUANTILE.fullmatch(self.kind)
        return (int(found[1]), int(found[2])) if found else None

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
    if arm.quantile:
        return _of_quantile(arm, scores, lengths, usable, shuffled, count)
    if arm.kind in ("all", "kept", "thinned"):
        return _thinned(arm, scores, np.flatnonzero(lengths > 0), shuffled, removed)
    if len(usable) < count:
        raise InputError(f"wanted {count} rows, got {len(usable)} with a score and an answer: lower the number of rows")
    if arm.kind == "longest":
        return np.sort(usable[np.argsort(-lengths[usable], kind="stable")[:count]])
    key = {"top": -scores, "bottom": scores, "random": shuffled}[arm.kind]
    return _length_matched(_unit_ranks(key[usable]), lengths[usable], usable, count)


def quantile_arms(count: int, signals: Sequence[str], *, length_matched: bool = False) -> tuple[Arm, ...]:
    """All quantiles of the rankings by some signals.

    Args:
        count: Number of quantiles.
        signals: Signals as in `Arm`.
        length_matched: Whether rows are ranked within strata of length.

    Raises:
        InputError: If there are fewer than three quantiles, of which no trend could be told.
    """
    if count < 3:
        raise InputError(f"wanted at least 3 quantiles, got {count}: two cannot show whether refusals fall steadily")
    ending = "-matched" if length_matched else ""
    return tuple(Arm(f"q{q + 1}of{count}{ending}", signal) for signal, q in product(signals, range(count)))


def _of_quantile(
    arm: Arm, scores: Scores, lengths: NDArray[Any], usable: Indices, shuffled: Scores, count: int
) -> Indices:
    """Random rows of a quantile, with as many tokens as ``count`` average rows; all quantiles have the same number."""
    number, total = arm.quantile or (1, 1)
    if len(usable) < count * total:
        raise InputError(
            f"wanted {count} rows in each of {total} quantiles, got {len(usable)} rows with a score and an answer: "
            f"lower the number of rows to at most {len(usable) // total}, or take fewer quantiles"
        )
    ranked = usable[np.argsort(scores[usable], kind="stable")]
    if arm.kind.endswith("-matched"):  # neighbours in length go to different quantiles, by their score
        by_length = usable[np.argsort(lengths[usable], kind="stable")]
        strata = np.array_split(by_length, max(len(usable) // (ROWS_PER_STRATUM * total), 1))
        ordered = [stratum[np.argsort(scores[stratum], kind="stable")] for stratum in strata]
        members = np.concatenate([np.array_split(stratum, total)[number - 1] for stratum in ordered])
    else:
        members = np.array_split(ranked, total)[number - 1]
    return _with_tokens(members, lengths, shuffled, count, float(lengths[usable].mean()) * count)


def _with_tokens(members: Indices, lengths: NDArray[Any], shuffled: Scores, count: int, wanted: float) -> Indices:
    """Random rows, ``count`` of them, whose tokens come near a number: long or short ones are preferred as needed."""
    keys = _unit_ranks(shuffled[members])

    def chosen(bonus: float) -> Indices:
        return members[np.argsort(keys + bonus * np.log(lengths[members]), kind="stable")[:count]]

    def excess(bonus: float) -> float:
        return float(lengths[chosen(bonus)].sum() / wanted - 1)

    low, high = (0.0, MAX_BONUS) if excess(0.0) > 0 else (-MAX_BONUS, 0.0)
    tried = [0.0]
    for _ in range(BISECTIONS if abs(excess(0.0)) > TOLERANCE else 0):
        tried.append((low + high) / 2)
        low, high = (tried[-1], high) if excess(tried[-1]) > 0 else (low, tried[-1])
    return np.sort(chosen(min(tried, key=lambda bonus: abs(excess(bonus)))))


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
