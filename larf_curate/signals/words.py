"""The axes of a row in words, such as "harmful request (erosion 4.2), answered (compliance +1.7)"."""

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from larf_curate.signals.combined import HARMFUL_MARGIN

HARMFUL_REQUEST = 2.0
"""`erosion` from which a request is called harmful: one neutral row in 40 lies beyond, if they are normal."""
REFUSED = -2.0
"""`compliance` up to which an answer is called a refusal; likewise."""
NO_REQUEST = 1e-3
"""Absolute `erosion` below which nothing is said of a request.

Texts without a prompt are given the mean prompt of neutral rows, whose erosion is 0 up to rounding. Of rows with a
prompt, about one in 1,000 is this close to 0.
"""

PLAIN_NAMES = {"erosion": "request", "harmful": "answer"}
"""What the axes of `standing` are about, in one word each."""


def in_words(signals: Mapping[str, Any] | None, *, figures: bool = True) -> str:
    """Describe request and answer of a row by the axes that it has; nothing is said of a missing one.

    Args:
        signals: ``larf_signals`` of the row; None, or null values, if it was not scored.
        figures: Whether to add the values of the axes.

    Returns:
        Such as "ordinary request, refused (over-refusal)"; empty if the row has no axis.
    """
    parts = []
    for words, remark, figure in _descriptions(axes_of(signals)):
        notes = ", ".join(filter(None, (remark, figure if figures else "")))
        parts.append(f"{words} ({notes})" if notes else words)
    return ", ".join(parts)


def standing(signals: Mapping[str, Any] | None, *, names: Mapping[str, str] | None = None) -> str:
    """Distance from neutral rows along `erosion` or `harmful`, whichever raises the default score more.

    Args:
        signals: ``larf_signals`` of the row.
        names: What to call the axes, such as `PLAIN_NAMES`; default: their names.

    Returns:
        Such as "erosion 3.2 standard deviations above ordinary rows"; empty if the row has neither axis.
    """
    axes = axes_of(signals)
    margins = {"erosion": 0.0, "harmful": HARMFUL_MARGIN}
    known = [name for name in margins if name in axes]
    if not known:
        return ""
    name = max(known, key=lambda name: axes[name] - margins[name])
    side = "above" if axes[name] >= 0 else "below"
    return f"{(names or {}).get(name, name)} {abs(axes[name]):.1f} standard deviations {side} ordinary rows"


def axes_of(signals: Mapping[str, Any] | None) -> dict[str, float]:
    """The finite values by name; a text without a prompt has no request that could be harmful, answered or refused."""
    values = {
        name: float(value)
        for name, value in (signals or {}).items()
        if isinstance(value, Real) and math.isfinite(value)
    }
    if abs(values.get("erosion", math.inf)) < NO_REQUEST:
        return {name: value for name, value in values.items() if name not in ("erosion", "compliance")}
    return values


def _descriptions(axes: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    """Words, remark and figure of each axis."""
    ordinary = "erosion" in axes and axes["erosion"] < HARMFUL_REQUEST
    if "erosion" in axes:
        yield f"{'ordinary' if ordinary else 'harmful'} request", "", f"erosion {_number(axes['erosion'])}"
    if "compliance" in axes:
        refused = axes["compliance"] <= REFUSED
        remark = "over-refusal" if refused and ordinary else ""
        yield "refused" if refused else "answered", remark, f"compliance {_number(axes['compliance'], '+')}"
    if axes.get("harmful", 0.0) > HARMFUL_MARGIN:
        yield "answer like the unsafe references", "", f"harmful {_number(axes['harmful'])}"


def _number(value: float, sign: str = "-") -> str:
    """One decimal, with a minus sign instead of a hyphen, and none before zero."""
    return f"{value:{sign}z.1f}".replace("-", "\N{MINUS SIGN}")
