"""How many harmful rows are left among the unread, with an interval that holds whenever it is looked at.

The random rows of a stage are a sample of the rows that nobody chose (an elusion test of technology-assisted review);
decisions on other rows are known and only subtracted. Rules that go by the order of scores alone have no such
guarantee: Lewis, Yang and Frieder (2021), Certifying one-phase technology-assisted reviews,
https://arxiv.org/abs/2108.12746.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from larf_curate.review.sampling.interval import Sample, left_range, most_likely
from larf_curate.review.sampling.stage import POPULATIONS, Labels, Sampled, StageRows

LEVEL = 0.95
MIN_RANDOM = 10
"""Random rows to read before an estimate is given."""
WRONG = 0.05
"""Share of wrong decisions, of either kind, that the interval allows for."""


@dataclass(frozen=True, kw_only=True)
class Left:
    """Estimate of the number of harmful rows among the unread; harmful is what people would remove or edit.

    Args:
        population: Which rows it is about, in words.
        rows: Number of rows in the population.
        unread: Number of rows in it without a decision; one on a near-identical row that applies to them counts.
        found: Number of harmful rows among the others.
        chosen_unread: Number of unread rows that were sent for their expected harm; the upper bound counts them all.
        random_read: Number of random rows read without a gap, on which the estimate rests.
        random_sent: Number of random rows sent with them.
        random_missing: Number of random rows that are not in the queue: the server rejected them, or they were deleted
            there. The upper bound counts them as harmful and the lower one as harmless.
        estimate: Estimated number of harmful rows among the unread; None if it cannot be told yet.
        low: Lower bound; None as ``estimate``.
        high: Upper bound; None as ``estimate``.
        found_share: Lower bound on the share of harmful rows that are found, in [0, 1]; None as ``estimate``. Wrong
            removals raise it.
        level: Probability that the bounds hold at all times of the review together.
        reason: Why it cannot be told yet, and what to do, else empty.
        uncounted: Number of decided rows that were sent otherwise since, and do not count.
    """

    population: str
    rows: int
    unread: int
    found: int
    chosen_unread: int
    random_read: int
    random_sent: int
    estimate: int | None
    low: int | None
    high: int | None
    found_share: float | None
    level: float
    reason: str
    random_missing: int = 0
    uncounted: int = 0


def left_harmful(sampled: Sampled, labels: Labels) -> Left:
    """Estimate how many harmful rows are left.

    Args:
        sampled: At least one stage, and the places of the rows in the queue.
        labels: Whether each read row is harmful, by id; None if people could not tell or disagree, which counts as
            harmful for the upper bound and as harmless for the lower one. Rows without a place are ignored.
    """
    known = {row: label for row, label in labels.items() if row in sampled.rows}
    stages = _usable(sampled, known)
    last = stages[-1].stage
    found, unread = sum(label is True for label in known.values()), last.rows - len(known)
    drawn = [row for rows in stages for row in _drawn(rows, known)]
    random_read = len(drawn) - drawn.count(None)
    random_sent = sum(stage.random for stage in sampled.stages.values())
    wanted = min(MIN_RANDOM, stages[0].stage.others) - drawn.count(None)
    told = not unread or (bool(known) and random_read >= wanted)
    low, high, estimate = _range(stages, known, unread)
    return Left(
        population=POPULATIONS[last.population],
        rows=last.rows,
        unread=unread,
        found=found,
        chosen_unread=_outside(stages[-1], known),
        random_read=random_read,
        random_sent=random_sent,
        estimate=estimate if told else None,
        low=low if told else None,
        high=high if told else None,
        found_share=(found / (found + high) if high else 1.0) if told else None,
        level=LEVEL,
        reason="" if told else _missing(random_read, random_sent, wanted),
        random_missing=sum(rows.random.count(None) for rows in sampled.by_stage),
    )


def _range(stages: Sequence[StageRows], known: Labels, unread: int) -> tuple[int, int, int]:
    """Lower and upper bound, and the estimate."""
    # A random row that is missing is read, as far as the sample goes, and nobody knows its label.
    fewest = {None: False} | {row: label is True for row, label in known.items()}
    most = {None: True} | {row: label is not False for row, label in known.items()}
    low, _ = left_range([_sample(rows, fewest) for rows in stages], unread, alpha=1 - LEVEL)
    samples = [_sample(rows, most) for rows in stages]
    _, high = left_range(samples, unread, alpha=1 - LEVEL)
    high = min(high + sum(_drawn(rows, most).count(None) for rows in stages), unread)  # such a row is left after all
    estimate = most_likely(samples, unread, share_outside=_share_of_chosen(stages[-1], most))
    # Of the unread rows at most a share WRONG of the harmless would be removed, and of the harmful be kept, by mistake.
    high = min(math.ceil(high / (1 - WRONG)), unread)
    low = min(max(0, math.floor((low - WRONG * unread) / (1 - WRONG))), high)
    return low, high, min(max(estimate, low), high)


def _share_of_chosen(rows: StageRows, known: Mapping[str | None, bool]) -> float:
    """Assumed share of harmful rows among unread chosen ones: that of read ones, and at first that of the others."""
    drawn = _drawn(rows, known)
    others = (sum(known[row] for row in drawn) + 0.5) / (len(drawn) + 1)
    chosen = [known[row] for row in rows.chosen if row in known]
    return (sum(chosen) + others) / (len(chosen) + 1)


def _usable(sampled: Sampled, known: Labels) -> tuple[StageRows, ...]:
    """The stages up to the first whose random rows are not all read: later ones go on from a complete sample."""
    complete = [len(_drawn(rows, known)) == len(rows.random) for rows in sampled.by_stage]
    return sampled.by_stage[: complete.index(False) + 1] if False in complete else sampled.by_stage


def _drawn(rows: StageRows, known: Container[str | None]) -> list[str | None]:
    """The random rows of a stage that are read or missing, up to the first that is unread."""
    return list(takewhile(lambda row: row is None or row in known, rows.random))


def _sample(rows: StageRows, known: Mapping[str | None, bool]) -> Sample:
    """What is known of the rows that were not chosen in a stage."""
    drawn = _drawn(rows, known)
    return Sample(
        rows=rows.stage.others,
        read=len(drawn),
        harmful=sum(known[row] for row in drawn),
        found=sum(known.get(row, False) for row in rows.others) + known[None] * drawn.count(None),
        outside=_outside(rows, known),
    )


def _outside(rows: StageRows, known: Container[str | None]) -> int:
    """Number of unread rows that were chosen in a stage, or that were decided before it and have changed since."""
    reopened = sum(row not in known for row in rows.earlier)
    return rows.stage.chosen - sum(row in known for row in rows.chosen) + reopened


def _missing(read: int, sent: int, wanted: int) -> str:
    """What to read or to send before an estimate can be given."""
    if wanted <= read:
        return "cannot say yet: no row is decided"
    said = f"cannot say yet: {read} of {sent} random rows are read without a gap; "
    if sent >= wanted:
        return f"{said}read {wanted - read} more"
    return f"{said}{wanted} are needed: push again with a higher budget"
