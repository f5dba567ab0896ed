"""The rows of a selection as the population of a sample, and those that are sent."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from datasets import Dataset, concatenate_datasets
from numpy.typing import NDArray

from larf_curate.columns import ROW_ID, STATE
from larf_curate.data.tables import read_column
from larf_curate.review.decisions.merge import Decision
from larf_curate.review.learning import References, learn
from larf_curate.review.learning.rerank import with_columns
from larf_curate.review.learning.snapshot import learning_rows
from larf_curate.review.records.push import PushResult
from larf_curate.review.sampling.choice import Plan, Population
from larf_curate.scoring.selection import Selection

CHOSEN_REASON = "sent for review by its expected harm"
RANDOM_REASON = "drawn at random, to estimate how many harmful rows are left"


@dataclass(frozen=True, kw_only=True, eq=False)
class HarmPush:
    """Result of a push by expected harm.

    Args:
        push: Counts and link.
        plan: Which rows were sent, and why.
        selection: The selection, in which unflagged rows that were sent are flagged.
        grouping: Whether near-identical rows were looked for, which needs states and profile.
        budget: The budget.
    """

    push: PushResult
    plan: Plan
    selection: Selection
    grouping: bool
    budget: int


def population_of(
    selection: Selection,
    *,
    unflagged: bool,
    decisions: Iterable[Decision],
    references: References | None,
    groups: Mapping[str, Collection[str]],
) -> Population:
    """The rows to choose from, with the probability that people remove each.

    Args:
        selection: The selection.
        unflagged: Whether unflagged rows belong to it.
        decisions: Decisions so far, from which the probabilities are learned; see `larf_curate.review.learning`.
            Without any, they are even for a score two standard deviations above the median.
        references: References of the profile that scored the rows, if available.
        groups: Near-identical rows by the one whose decision applies to them.

    Raises:
        InputError: If the selection has no rows.
    """
    parts = selection if unflagged else replace(selection, kept=selection.kept.select([]))
    rows = learning_rows(parts)
    return Population(
        name="all" if unflagged else "flagged",
        ids=list(read_column(rows, ROW_ID)),
        chances=_chances(rows, decisions, references),
        groups=groups,
    )


def _chances(rows: Dataset, decisions: Iterable[Decision], references: References | None) -> NDArray[np.float64]:
    """Probability that people remove each row, shape (n,); the mean for rows that could not be scored."""
    decided = {row.row_id: row.decision or "" for row in decisions if row.status == "decided"}
    if not decided and STATE in rows.column_names:
        rows = rows.remove_columns(STATE)  # they matter once there are decisions
    chances = np.asarray(learn(rows, decided, references=references, need_states=False).chances, np.float64)
    known = np.isfinite(chances)
    return np.where(known, chances, chances[known].mean() if known.any() else 0.5)


def flag_planned(selection: Selection, planned: Plan, queued: Collection[str] = ()) -> Selection:
    """The selection, with the unflagged rows that are sent moved to the flagged ones, with a reason each.

    Args:
        selection: The selection.
        planned: Rows to send.
        queued: Ids of rows that earlier pushes sent, which are flagged too, should their selection not have been saved.
    """
    sent = {*planned.chosen, *planned.random, *queued}
    random = {row for stage in planned.sampled.by_stage for row in stage.random}
    ids = list(read_column(selection.kept, ROW_ID))
    moved = [index for index, row in enumerate(ids) if row in sent]
    if not moved:
        return selection
    reasons = [RANDOM_REASON if ids[index] in random else CHOSEN_REASON for index in moved]
    columns = {"larf_flagged": [True] * len(moved), "larf_reason": reasons}
    flagged = with_columns(selection.kept.select(moved), columns)
    stay = np.setdiff1d(np.arange(len(ids)), moved)
    parts = [part for part in (selection.flagged, flagged) if len(part)]
    return replace(selection, flagged=concatenate_datasets(parts), kept=selection.kept.select(stay))


def rows_of(selection: Selection, planned: Plan) -> Dataset:
    """The flagged rows of a plan."""
    wanted = {*planned.chosen, *planned.random}
    ids = list(read_column(selection.flagged, ROW_ID))
    return selection.flagged.select([index for index, row in enumerate(ids) if row in wanted])
