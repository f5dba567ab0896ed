"""Rows ranked anew, and how far to trust that."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Value
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from larf_curate.columns import ROW_ID
from larf_curate.errors import InputError
from larf_curate.review.learning.inputs import Floats, References, StoredRows
from larf_curate.review.learning.regression import Regression
from larf_curate.review.learning.space import Space

LEARNED = "larf_learned_score"
BAD = ("remove", "edit")
"""Decisions after which a row is not published as it is."""
GOOD = ("keep",)
FOLDS = 5
FEWEST = 10
"""Decisions a side below which held-out figures say little."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How well decisions are predicted that the ranking has not seen (5-fold cross-validation over the decisions).

    It is about the rows that people looked at, which are mostly those that ranked high.

    Args:
        auroc: Chance that a removed row ranks above a kept one, by the learned score.
        average_precision: Of the learned score.
        machine_auroc: The same of ``larf_score``.
        machine_average_precision: The same of ``larf_score``.
        enough: Whether there are at least 10 decisions a side; with fewer the figures say little.
    """

    auroc: float
    average_precision: float
    machine_auroc: float
    machine_average_precision: float
    enough: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """A ranking that has learned from people.

    Args:
        scores: Shape (n,), float32, in the unit of ``larf_score`` and equal to it without decisions; NaN where a row
            could not be scored; high = bad.
        chances: Estimated chance that a person removes the row, shape (n,), in [0, 1].
        directions: The rows' states as unit vectors less the centre, in their main directions, shape (n, k), float32;
            zero where there is none.
        removed: Number of decisions that a row is bad.
        kept: Number of decisions that a row is fine.
        held_out: How well it predicts decisions; None with fewer than two decisions a side.
    """

    scores: NDArray[np.float32]
    chances: NDArray[np.float32]
    directions: NDArray[np.float32]
    removed: int
    kept: int
    held_out: HeldOut | None

    def add_to(self, dataset: Dataset) -> Dataset:
        """The dataset with a column ``larf_learned_score``; ``larf_score`` stays as it is."""
        bare = dataset.remove_columns([LEARNED]) if LEARNED in dataset.column_names else dataset
        values = [None if np.isnan(score) else float(score) for score in self.scores]
        return bare.add_column(LEARNED, values, feature=Value("float32"))

    def summary(self) -> dict[str, Any]:
        """Decisions and held-out figures, as JSON values."""
        held_out = None if self.held_out is None else dict(vars(self.held_out))
        return {"decisions": self.removed + self.kept, "removed": self.removed, "kept": self.kept, "held_out": held_out}


def learn(dataset: Dataset, decisions: Mapping[str, str], *, references: References | None = None) -> Learned:
    """Rank scored rows anew by people's decisions.

    Args:
        dataset: Rows with ``larf_row_id``, ``larf_score`` and ``larf_state``, and ``larf_signals`` if there are.
        decisions: By row id: ``remove`` and ``edit`` say that a row is bad, ``keep`` that it is fine; other values and
            rows that are not in the dataset say nothing.
        references: Those of the profile that scored the rows; without them decisions alone teach.

    Raises:
        InputError: If columns are missing, or the references are of another width than the states.
    """
    if ROW_ID not in dataset.column_names:
        raise InputError(f"wanted rows with {ROW_ID}, got columns {dataset.column_names}: run larf-curate select first")
    ids = dataset.with_format(None)[ROW_ID][:]
    told = [(index, decisions[row]) for index, row in enumerate(ids) if decisions.get(row) in (*BAD, *GOOD)]
    places = np.array([index for index, _ in told], np.intp)
    return rank(StoredRows.of(dataset), places, np.array([said in BAD for _, said in told], bool), references)


def rank(
    rows: StoredRows,
    places: NDArray[np.intp],
    bad: NDArray[np.bool_],
    references: References | None = None,
    *,
    judge: bool = True,
) -> Learned:
    """Rank stored rows anew; see `learn`.

    Args:
        rows: The rows.
        places: Which of them are decided, shape (m,).
        bad: Whether those are bad, shape (m,).
        references: Those of the profile that scored the rows.
        judge: Whether to compute held-out figures.

    Raises:
        InputError: If the references are of another width than the states.
    """
    scored = np.isfinite(rows.scores)
    bad, places = bad[scored[places]], places[scored[places]]
    space = Space.of(rows, places, references)
    directions = np.zeros((len(rows.scores), space.basis.shape[1]), np.float32)
    directions[rows.has_state] = space(rows.states)
    regression = Regression.of(rows, directions, space, references)
    weights = regression.fit(places, bad)
    added = regression.features[:, 1:] @ (weights - regression.mean)[1:].astype(np.float32)
    return Learned(
        scores=(rows.scores + regression.unit * added).astype(np.float32),
        chances=np.where(scored, expit(regression.features @ weights.astype(np.float32)), np.nan),
        directions=directions,
        removed=int(bad.sum()),
        kept=int((~bad).sum()),
        held_out=_held_out(regression, rows.scores, places, bad) if judge else None,
    )


def _held_out(
    regression: Regression, scores: Floats, places: NDArray[np.intp], bad: NDArray[np.bool_]
) -> HeldOut | None:
    fewest = min(int(bad.sum()), int((~bad).sum()))
    if fewest < 2:
        return None
    learned = np.empty(len(places))
    for train, test in StratifiedKFold(min(FOLDS, fewest), shuffle=True, random_state=0).split(places, bad):
        weights = regression.fit(places[train], bad[train])
        learned[test] = regression.features[places[test]] @ weights
    return HeldOut(
        auroc=float(roc_auc_score(bad, learned)),
        average_precision=float(average_precision_score(bad, learned)),
        machine_auroc=float(roc_auc_score(bad, scores[places])),
        machine_average_precision=float(average_precision_score(bad, scores[places])),
        enough=fewest >= FEWEST,
    )
