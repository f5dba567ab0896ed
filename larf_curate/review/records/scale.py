"""The scale of the bars on the review page: one for all rows of a queue, so that bars of two rows can be compared."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from datasets import Dataset

from larf_curate.data.tables import read_column
from larf_curate.review.records.reason import is_number
from larf_curate.signals import AXES

STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
"""Scales, by powers of ten: there is some room for rows that are pushed later."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The value at which a bar is full, by kind of value; larger ones are drawn in full length and marked.

    Args:
        axes: Of the three axes, in standard deviations.
        layers: Of ``larf_layer_scores``.
        signals: Of all other signals.
    """

    axes: float = 1.0
    layers: float = 1.0
    signals: float = 1.0

    @classmethod
    def of(cls, rows: Dataset) -> "Scale":
        """The smallest scale on which no bar of these rows is cut.

        Args:
            rows: Rows with ``larf_signals`` and ``larf_layer_scores``, both of which may be missing.
        """
        signals = [cell or {} for cell in _column(rows, "larf_signals")]
        layers = (value for cell in _column(rows, "larf_layer_scores") for value in cell or ())
        return cls(
            axes=_round_up(value for cell in signals for name, value in cell.items() if name in AXES),
            layers=_round_up(layers),
            signals=_round_up(value for cell in signals for name, value in cell.items() if name not in AXES),
        )

    @classmethod
    def from_json(cls, value: object) -> "Scale | None":
        """The scale that `to_json` wrote; None if it is none."""
        if not isinstance(value, Mapping) or set(value) != {"axes", "layers", "signals"}:
            return None
        return cls(**value) if all(is_number(number) and number > 0 for number in value.values()) else None

    def to_json(self) -> dict[str, float]:
        """The scale as a JSON object."""
        return asdict(self)


def _column(rows: Dataset, name: str) -> Iterable[Any]:
    return read_column(rows, name) if name in rows.column_names else ()


def _round_up(values: Iterable[float | None]) -> float:
    largest = max((abs(value) for value in values if is_number(value)), default=0.0)
    if largest == 0.0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(largest))
    return next((step * power for step in STEPS if largest <= step * power), 10.0 * power)
