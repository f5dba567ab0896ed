"""Which rows to fine-tune on: top, bottom and random rows with the same number of rows and of training tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from larf_curate.errors import InputError

Scores: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

PICKS, STRATA = 8, 8
"""Rows to take from each stratum of length where there are many, and how many strata there are where there are few."""

TOLERANCE, LARGEST, STEPS = 0.02, 64.0, 16
"""Share by which an arm's tokens may be off, and the search for the bonus that makes up for more."""

KINDS = ("top", "bottom", "random", "longest", "all", "kept", "thinned")


@dataclass(frozen=True)
class Arm:
    """One way of choosing rows.

    ``top`` and ``bottom`` follow a signal, ``random`` does not; these three have equally many rows and, within 2 % in
    all where the rows allow it, equally long answers. ``longest`` has equally many rows, not tokens: the baseline of
    a score that measures length. ``all`` takes every row, ``kept`` all but the signal's top share, ``thinned`` all but
    as many random rows.

    Args:
        kind: One of these.
        signal: Column of the score, or a field of ``larf_signals``.
    """

    kind: str
    signal: str = "larf_score"

    @classmethod
    def parse(cls, text: str) -> "Arm":
        """Read ``kind`` or ``kind:signal``.

        Raises:
            InputError: If there is no such kind.
        """
        kind, _, signal = text.partition(":")
        if kind not in KINDS:
            raise InputError(f"there is no arm {text!r}: wanted {', '.join(KINDS)}, with a signal as in top:larf_score")
        return cls(kind, signal or "larf_score")

    @property
    def name(self) -> str:
        """The text that `parse` reads."""
        return f"{self.kind}:{self.signal}" if self.kind in ("top", "bottom", "kept") else self.kind

    @property
    def reads_scores(self) -> bool:
        """Whether the choice depends on the signal, be it only on which rows have it."""
        return self.kind not in ("all", "thinned")


def signal_values(scored: Dataset, signal: str) -> Scores:
    """A signal's values, shape (rows,), NaN where a row has none.

    Raises:
        InputError: If the dataset does not have the signal.
    """
    named = scored.features.get("larf_signals", {})
    if signal in scored.column_names:
        values: list[Any] = list(scored[signal])
    elif signal in named:
        values = [(row or {}).get(signal) for row in scored["larf_signals"]]
    else:
        known = [name for name in ("larf_score", *named) if name in scored.column_names or name in named]
        raise InputError(f"the scored rows have no signal {signal!r}: wanted one of {', '.join(known) or 'none'}")
    if any(not isinstance(value, int | float) and value is not None for value in values):
        raise InputError(f"the column {signal!r} holds no numbers: wanted a score")
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def choose(
    arm: Arm, scores: Scores, tokens: Sequence[int], *, count: int, removed: float = 0.1, seed: int = 0
) -> Indices:
    """Choose the rows of an arm.

    Args:
        arm: What to choose by.
        scores: The arm's signal, shape (rows,); rows with NaN are chosen by no arm but ``all`` and ``thinned``.
        tokens: Training tokens of each row; rows without any are chosen by none.
        count: Rows of ``top``, ``bottom``, ``random`` and ``longest``.
        removed: Share of rows that ``kept`` and ``thinned`` leave out.
        seed: Seed of the random arms.

    Returns:
        Row numbers, ascending.

    Raises:
        InputError: If there are fewer rows than wanted.
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
    return _level(_rank(key[usable]), lengths[usable], usable, count)


def _thinned(arm: Arm, scores: Scores, rows: Indices, shuffled: Scores, removed: float) -> Indices:
    count = 0 if arm.kind == "all" else round(removed * len(rows))
    if arm.kind == "kept":  # rows without a score are flagged too: they go first
        order = rows[np.argsort(-np.nan_to_num(scores[rows], nan=np.inf), kind="stable")]
    else:
        order = rows[np.argsort(shuffled[rows], kind="stable")]
    return np.sort(order[count:])


def _level(key: Scores, lengths: NDArray[Any], usable: Indices, count: int) -> Indices:
    """The rows with the smallest keys within narrow strata of length, as many from each stratum for every key.

    Where lengths within a stratum still differ so much that the tokens in all miss what the strata's means give by more
    than 2 %, short rows (or long ones) get as small a bonus on their key as makes up for it.
    """
    by_length = np.argsort(lengths, kind="stable")
    strata = np.array_split(by_length, max(count // PICKS, min(count // 2, STRATA), 1))
    ends = np.cumsum([len(stratum) for stratum in strata])
    quotas = np.diff(np.round(ends * count / len(usable)).astype(int), prepend=0)
    wanted = sum(lengths[stratum].mean() * quota for stratum, quota in zip(strata, quotas, strict=True))

    def chosen(bonus: float) -> Indices:
        keys = key + bonus * np.log(lengths)
        parts = [s[np.argsort(keys[s], kind="stable")[:quota]] for s, quota in zip(strata, quotas, strict=True)]
        return np.concatenate(parts)

    def excess(bonus: float) -> float:
        return float(lengths[chosen(bonus)].sum() / wanted - 1)

    sign = np.sign(excess(0.0))
    low, high = 0.0, 0.0 if abs(excess(0.0)) <= TOLERANCE else sign * LARGEST
    for _ in range(STEPS if high else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if sign * excess(middle) > TOLERANCE else (low, middle)
    return np.sort(usable[chosen(min(low, high, key=lambda bonus: abs(excess(bonus))))])


def _rank(values: Scores) -> Scores:
    """Ranks from 0 to 1."""
    return np.argsort(np.argsort(values, kind="stable"), kind="stable") / max(len(values) - 1, 1)
