"""Rows that people decided, beside the references of a profile: signals are fitted to both.

A removed row counts as an unsafe reference. A kept row that refuses counts as a safe one. What a kept row that answers
shows depends on the signal. The default signal and its axes take the safe references for refusals, among which an
ordinary answer would not fit: there its prompt joins those that sound harmful and are not. All other signals compare
unsafe rows with safe ones, whatever these are: there the row joins the safe references.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larf_curate.signals import AXES, DEFAULT_SIGNAL, ReferenceStates
from larf_curate.signals.protocol import Fit, Signal
from larf_curate.states import States

REMOVED, KEPT_REFUSALS, KEPT_ANSWERS = "removed", "kept_refusals", "kept_answers"
FIGURES = {
    "decided": "removed above kept rows",
    "safe": "unsafe above safe references",
    "neutral": "unsafe references above neutral rows",
}
"""What the figures of a new version are about, by their names in its record."""
DECIDED_SIDES = (REMOVED, KEPT_REFUSALS, KEPT_ANSWERS)
"""Names of the sides of decided rows; a profile has those that are not empty."""
Decided = Mapping[str, States]
"""States of decided rows by side, each of shape (n, layers, d) by position."""


def fit_with_decided(fit: Fit, signal: str, decided: Decided) -> Fit:
    """Extend the fit of a signal by decided rows, which join whatever references it is given.

    Args:
        fit: Fits the signal.
        signal: Its name.
        decided: States of the decided rows.
    """

    def extended(refs: ReferenceStates) -> Signal:
        return fit(with_decided(refs, signal, decided))

    return extended if decided else fit


def with_decided(refs: ReferenceStates, signal: str, decided: Decided) -> ReferenceStates:
    """References together with decided rows, as a signal uses these.

    Args:
        refs: The references.
        signal: Name of the signal.
        decided: States of the decided rows.
    """
    unsafe = concatenated(refs.unsafe, decided.get(REMOVED))
    safe = concatenated(refs.safe, decided.get(KEPT_REFUSALS))
    answers = decided.get(KEPT_ANSWERS)
    if signal not in (DEFAULT_SIGNAL, *AXES) or refs.borderline is None:
        return replace(refs, unsafe=unsafe, safe=concatenated(safe, answers))
    prompts = refs.borderline if answers is None else np.concatenate([refs.borderline, answers["prompt"]])
    return replace(refs, unsafe=unsafe, safe=safe, borderline=prompts)


def concatenated(first: States, second: States | None) -> States:
    """The states of two sides, by position; a missing second one adds nothing."""
    return first if second is None else {name: np.concatenate([first[name], second[name]]) for name in first}


def taken(states: States, rows: NDArray[np.intp] | NDArray[np.bool_]) -> States:
    """The states of some rows."""
    return {position: values[rows] for position, values in states.items()}


def sampled(states: States, count: int) -> NDArray[np.intp]:
    """Indices of a fixed sample of ``count`` rows in their order, or of all if they are fewer.

    Which rows are in it depends on nothing but the rows: those with the lowest digests of their last states.
    """
    digests = [hashlib.sha256(np.ascontiguousarray(row).tobytes()).digest() for row in states["last"]]
    return np.sort(np.array(sorted(range(len(digests)), key=digests.__getitem__)[:count], np.intp))


def in_words(record: Mapping[str, Any]) -> str:
    """Counts and sources of the decided rows of a profile, from its record, for people."""
    rows = record["rows"]
    kept = rows.get(KEPT_REFUSALS, 0) + rows.get(KEPT_ANSWERS, 0)
    return f"{rows.get(REMOVED, 0)} removed, {kept} kept ({', '.join(each['dataset'] for each in record['added'])})"
