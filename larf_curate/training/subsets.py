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

KINDS = ("top", "bottom", "random", "longest", "all", "kept", "thinned")


@dataclass(frozen=True)
class Arm:
    """One way of choosing rows.

    ``top`` and ``bottom`` follow a signal, ``random`` does not; these three have equally many rows and, within a few
    tokens a row, equally long answers. ``longest`` has equally many rows, not tokens: the baseline of a score that
    measures length. ``all`` takes every row, ``kept`` all but the signal's top share, ``thinned`` all but as many
    random rows.

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
    def is_random(self) -> bool:
        """Whether every seed draws other rows."""
        return self.kind in ("random", "thinned")


def signal_values(scored: Dataset, signal: str) -> Scores:
    """A signal's values, shape (rows,), NaN where a row has none.

    Raises:
        InputError: If the dataset does not have the signal.
    """
    if signal in scored.column_names:
        values: list[Any] = list(scored[signal])
    else:
        signals = list(scored["larf_signals"]) if "larf_signals" in scored.column_names else []
        if not signals or signal not in (signals[0] or {}):
            known = ["larf_score", *(signals[0] or {})] if signals else ["larf_score"]
            raise InputError(f"the scored rows have no signal {signal!r}: wanted one of {', '.join(known)}")
        values = [(row or {}).get(signal) for row in signals]
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
    return _matched(key, lengths, usable, count)


def _thinned(arm: Arm, scores: Scores, rows: Indices, shuffled: Scores, removed: float) -> Indices:
    count = 0 if arm.kind == "all" else round(removed * len(rows))
    if arm.kind == "kept":  # rows without a score are flagged too: they go first
        order = rows[np.argsort(-np.nan_to_num(scores[rows], nan=np.inf), kind="stable")]
    else:
        order = rows[np.argsort(shuffled[rows], kind="stable")]
    return np.sort(order[count:])


def _matched(key: Scores, lengths: NDArray[Any], usable: Indices, count: int) -> Indices:
    """The rows with the smallest keys within narrow strata of length; every key takes as many from each stratum."""
    by_length = usable[np.argsort(lengths[usable], kind="stable")]
    strata = np.array_split(by_length, max(count // PICKS, min(count // 2, STRATA), 1))
    ends = np.cumsum([len(stratum) for stratum in strata])
    quotas = np.diff(np.round(ends * count / len(usable)).astype(int), prepend=0)
    chosen = [
        stratum[np.argsort(key[stratum], kind="stable")[:quota]] for stratum, quota in zip(strata, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))
