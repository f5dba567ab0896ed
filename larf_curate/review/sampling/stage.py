"""Stages of a review sample, and what records carry of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

from larf_curate.errors import InputError
from larf_curate.records import STRICT, parse_record

POPULATIONS = {"flagged": "flagged rows", "all": "flagged and unflagged rows"}

OTHERWISE = -1
"""Place of a row that was not chosen, and that another command sent afterwards."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How the rows of one push were chosen; the same in all its records.

    Args:
        number: Number of the stage, from 1.
        population: ``flagged``, or ``all`` for flagged and unflagged rows; the same in all stages.
        rows: Number of rows in that population, read ones included.
        digest: Digest of their ids.
        chosen: Number of chosen rows; those that share the decision of one of them included.
        others: Number of the other rows that were unread.
        random: Number of the others that were sent, the first in random order.
        seed: Seed of that order.
    """

    __pydantic_config__ = STRICT

    number: int
    population: str
    rows: int
    digest: str
    chosen: int
    others: int
    random: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class StageRows:
    """The rows in the queue, by what they are to a stage.

    Args:
        stage: The stage.
        random: Ids of its random rows, in their order, up to the last that is in the queue; None for one before it that
            is not: it was rejected by the server, or deleted there.
        chosen: Ids of its chosen rows.
        others: Ids of all other rows that were unread: random ones, and those that were sent later.
        earlier: Ids of the rows that were decided before it.
    """

    stage: Stage
    random: tuple[str | None, ...]
    chosen: tuple[str, ...]
    others: tuple[str, ...]
    earlier: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What records carry.

    Args:
        stages: Stages by number, as text.
        rows: By row id and number of the stage, 0 for a chosen row, or its place in the random order, from 1, or
            ``OTHERWISE``. Of a record, its own row and those that share its decision. Rows decided before the first
            stage have no place.
    """

    __pydantic_config__ = STRICT

    stages: Mapping[str, Stage]
    rows: Mapping[str, Mapping[str, int]]

    @property
    def last(self) -> Stage | None:
        """The last stage."""
        return max(self.stages.values(), key=lambda stage: stage.number, default=None)

    @cached_property
    def by_stage(self) -> tuple[StageRows, ...]:
        """The rows by stage, in the order of the stages."""
        first = {row: min(map(int, places), default=0) for row, places in self.rows.items()}
        stages = sorted(self.stages.values(), key=lambda stage: stage.number)
        return tuple(_stage_rows(stage, self.rows, first) for stage in stages)

    def of_rows(self, ids: Iterable[str]) -> "Sampled":
        """What the record of some rows carries."""
        rows = {row: self.rows[row] for row in ids if row in self.rows}
        names = {name for places in rows.values() for name in places}
        return Sampled(stages={name: stage for name, stage in self.stages.items() if name in names}, rows=rows)

    def to_metadata(self) -> dict[str, Any]:
        """The value of `larf_curate.review.records.record.SAMPLING`."""
        rows = {row: dict(sorted(places.items())) for row, places in sorted(self.rows.items())}
        return {"stages": {name: asdict(stage) for name, stage in sorted(self.stages.items())}, "rows": rows}


def _stage_rows(stage: Stage, rows: Mapping[str, Mapping[str, int]], first: Mapping[str, int]) -> StageRows:
    """The rows of one stage.

    Args:
        stage: The stage.
        rows: Places by row id.
        first: Number of the stage in which a row was sent, by its id; 0 if it was decided before the first.
    """
    name = str(stage.number)
    places = {row: held[name] for row, held in rows.items() if name in held}
    by_place = {place: row for row, place in places.items() if place > 0}
    outside = [row for row in rows if row not in places]
    later = (row for row in outside if first[row] > stage.number)
    return StageRows(
        stage=stage,
        random=tuple(map(by_place.get, range(1, max(by_place, default=0) + 1))),
        chosen=tuple(row for row, place in places.items() if not place),
        others=(*(row for row, place in places.items() if place), *later),
        earlier=tuple(row for row in outside if first[row] < stage.number),
    )


Labels = Mapping[str, bool | None]
"""Whether each decided row is harmful, by id; None if people could not tell, or disagree."""
EMPTY = Sampled(stages={}, rows={})


def random_order(ids: Sequence[str], seed: int) -> list[str]:
    """The ids in a random order, by a hash of each with the seed: the same on every machine."""
    draws = [blake2b(f"{seed}\n{row}".encode("utf-8", "replace"), digest_size=8).digest() for row in ids]
    return [ids[index] for index in np.argsort(np.frombuffer(b"".join(draws), ">u8"), kind="stable")]


def read_sampling(values: Iterable[object]) -> Sampled:
    """Join what the records of a queue carry.

    Args:
        values: `larf_curate.review.records.record.SAMPLING` of the records that have it.

    Raises:
        InputError: If a record carries something else, or records carry different stages of the same number.
    """
    stages: dict[str, Stage] = {}
    rows: dict[str, dict[str, int]] = {}
    remedy = "push by expected harm to a queue of another name"
    for value in values:
        sampled = parse_record(value, Sampled, path="a record of the queue", remedy=remedy)
        for name, stage in sampled.stages.items():
            if stages.setdefault(name, stage) != stage:
                raise InputError(f"records of the queue come from different samples of rows: {remedy}")
        for row, places in sampled.rows.items():
            rows.setdefault(row, {}).update(places)
    return Sampled(stages=stages, rows=rows)
