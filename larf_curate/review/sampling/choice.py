"""Which rows to send under a budget: those with the highest expected harm, and random ones among the others."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from larf_curate.columns import ids_digest
from larf_curate.errors import InputError
from larf_curate.review.sampling.stage import OTHERWISE, Labels, Sampled, Stage, random_order

RANDOM_SHARE = 0.2
"""Share of a budget for random rows, while chosen rows are worth reading."""
AUDIT_SHARE = 0.8
"""Share of a budget for random rows, once they are not: random rows tell most when few harmful ones are left."""
WORTH_READING = 0.1
"""Share of harmful rows among the chosen rows of the last push from which they are worth reading."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Rows to choose from.

    Args:
        name: ``flagged``, or ``all`` for flagged and unflagged rows.
        ids: Ids of n rows.
        chances: Estimated probability that people remove or edit each, shape (n,).
        groups: Near-identical rows that a decision on a row also applies to, by its id.
    """

    name: str
    ids: Sequence[str]
    chances: NDArray[np.float64]
    groups: Mapping[str, Collection[str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to send.

    Args:
        chosen: Ids of rows to send for their expected harm, highest first.
        random: Ids of rows to send at random.
        sampled: Stages and places of all rows of the population that are in the queue then.
    """

    chosen: tuple[str, ...]
    random: tuple[str, ...]
    sampled: Sampled


def plan(
    population: Population,
    *,
    sampled: Sampled,
    queued: Collection[str],
    shared: Collection[str],
    labels: Labels,
    budget: int,
    seed: int | None = None,
) -> Plan:
    """Plan the next stage; nothing is added if the queue has as many rows as the budget, or all rows.

    Expected harm of a look is the number of harmful rows that it removes on average: the probability that people remove
    the row, times the number of rows that their decision applies to.

    Args:
        population: The rows.
        sampled: Earlier stages.
        queued: Ids of the records in the queue.
        shared: Ids of rows that share a decision with one of them.
        labels: Whether each decided row is harmful, by id; see `left_harmful`.
        budget: Number of records that the queue should have, at least 1.
        seed: Seed of the random order; default: derived from the ids and the number of the stage.

    Raises:
        InputError: If the earlier stages are of another population.
    """
    digest = ids_digest(population.ids)
    _check_same(sampled.last, population, digest)
    present = set(queued).union(shared)
    known = [row for row in population.ids if row in present]
    new = budget - sum(row in queued for row in known)
    rows = {row: dict(sampled.rows.get(row, _otherwise(sampled))) for row in known}
    unsent = [row for row in population.ids if row not in present]
    if new <= 0 or not unsent:
        return Plan(chosen=(), random=(), sampled=Sampled(stages=sampled.stages, rows=rows))
    number = 1 + (sampled.last.number if sampled.last else 0)
    drawn = max(1, round(new * _random_share(sampled, labels)))
    candidates = set(unsent)
    leaders = _most_harm(population, candidates, new - drawn)
    together = [row for leader in leaders for row in (leader, *population.groups.get(leader, ()))]
    chosen = [row for row in known if row not in labels] + [row for row in together if row in candidates]
    others = sorted(candidates.difference(chosen))
    seed = int(digest[:8], 16) + number if seed is None else seed
    random = random_order(others, seed)[:drawn]
    stage = Stage(
        number=number,
        population=population.name,
        rows=len(population.ids),
        digest=digest,
        chosen=len(chosen),
        others=len(others),
        random=len(random),
        seed=seed,
    )
    places = dict.fromkeys(chosen, 0) | {row: place for place, row in enumerate(random, 1)}
    for row, place in places.items():
        rows.setdefault(row, {})[str(number)] = place
    stages = {**sampled.stages, str(number): stage}
    return Plan(chosen=tuple(leaders), random=tuple(random), sampled=Sampled(stages=stages, rows=rows))


def _otherwise(sampled: Sampled) -> dict[str, int]:
    """Places of a row in the queue that no stage sent: before the first stage none."""
    return {str(sampled.last.number): OTHERWISE} if sampled.last else {}


def _random_share(sampled: Sampled, labels: Labels) -> float:
    """Share of random rows in the next push, by how many harmful rows people found among those chosen in the last."""
    last = sampled.by_stage[-1].chosen if sampled.stages else ()
    chosen = [labels[row] for row in last if row in labels]
    worth = not chosen or sum(label is True for label in chosen) >= WORTH_READING * len(chosen)
    return RANDOM_SHARE if worth else AUDIT_SHARE


def _most_harm(population: Population, candidates: Collection[str], count: int) -> list[str]:
    """The rows with the highest expected harm; of near-identical ones, that whose decision applies to the others."""
    followers = {row for members in population.groups.values() for row in members}
    leaders = [(index, row) for index, row in enumerate(population.ids) if row in candidates and row not in followers]
    sizes = [1 + sum(row in candidates for row in population.groups.get(leader, ())) for _, leader in leaders]
    harm = population.chances[[index for index, _ in leaders]] * sizes
    return [leaders[index][1] for index in np.argsort(-harm, kind="stable")[:count]]


def _check_same(last: Stage | None, population: Population, digest: str) -> None:
    """Refuse another population than that of the earlier stages."""
    if last is None or (last.population, last.digest) == (population.name, digest):
        return
    if last.digest == digest or last.population != population.name:
        what = {"flagged": "flagged rows only", "all": "flagged and unflagged rows (-o)"}
        wanted, got = what[last.population], what[population.name]
    else:
        wanted, got = f"the {last.rows:,} rows of the earlier push", f"{len(population.ids):,} others"
    raise InputError(f"this queue samples from {wanted}, got {got}: push to a queue of another name (--name)")
