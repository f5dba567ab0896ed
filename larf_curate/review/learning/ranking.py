"""Re-ranking of scored rows by decisions, with its held-out accuracy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Value
from numpy.typing import NDArray
from scipy.special import expit

from larf_curate.columns import ROW_ID
from larf_curate.errors import InputError
from larf_curate.review.learning.inputs import Floats, References, StoredRows
from larf_curate.review.learning.regression import Regression
from larf_curate.review.learning.space import Space

LEARNED = "larf_learned_score"
POSITIVE = ("remove", "edit")
"""Decisions of the positive class: the row is not published as it is."""
NEGATIVE = ("keep",)
FOLDS = 5
MIN_PER_CLASS = 10
"""Number of decisions per class below which held-out figures are too uncertain to report."""


@dataclass(frozen=True, kw_only=True)
class HeldOutAccuracy:
    """How well the ranking predicts held-out decisions, by cross-validation over the decisions (at most 5 folds).

    It is measured on the rows that people decided, which are mostly those that ranked high. All values are in [0, 1].

    Args:
        auroc: AUROC of the learned score: the probability that it ranks a removed row above a kept one.
        average_precision: Average precision of the learned score.
        machine_auroc: AUROC of ``larf_score``.
        machine_average_precision: Average precision of ``larf_score``.
        enough: Whether there are at least 10 decisions per class; with fewer the figures are too uncertain.
    """

    auroc: float
    average_precision: float
    machine_auroc: float
    machine_average_precision: float
    enough: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """A ranking learned from decisions.

    Args:
        scores: Learned scores, shape (n,), float32, higher is worse. They are in units of ``larf_score``, and equal to
            it without decisions; NaN for rows that could not be scored.
        chances: Estimated probability that a person removes each row, shape (n,), in [0, 1]; NaN as in ``scores``.
        directions: Projected states of the rows, shape (n, k), float32; zero for rows without a state.
        removed: Number of decisions to remove or edit that were learned from.
        kept: Number of decisions to keep that were learned from.
        held_out: Held-out accuracy; None with fewer than two decisions per class.
    """

    scores: NDArray[np.float32]
    chances: NDArray[np.float32]
    directions: NDArray[np.float32]
    removed: int
    kept: int
    held_out: HeldOutAccuracy | None

    def add_to(self, dataset: Dataset) -> Dataset:
        """The dataset with a column ``larf_learned_score``; ``larf_score`` is not changed.

        Args:
            dataset: The n rows that were ranked, in their order.
        """
        others = dataset.remove_columns([LEARNED]) if LEARNED in dataset.column_names else dataset
        values = [None if np.isnan(score) else float(score) for score in self.scores]
        return others.add_column(LEARNED, values, feature=Value("float32"))

    def summary(self) -> dict[str, Any]:
        """Number of decisions and held-out accuracy, as JSON values."""
        held_out = None if self.held_out is None else dict(vars(self.held_out))
        return {"decisions": self.removed + self.kept, "removed": self.removed, "kept": self.kept, "held_out": held_out}


def learn(dataset: Dataset, decisions: Mapping[str, str], *, references: References | None = None) -> Learned:
    """Re-rank scored rows by people's decisions.

    Args:
        dataset: Rows with ``larf_row_id``, ``larf_score`` and ``larf_state``; ``larf_signals`` is optional.
        decisions: Decisions by row id. ``remove`` and ``edit`` are the positive class, ``keep`` the negative one; other
            decisions, and rows that are not in the dataset, are ignored.
        references: References of the profile that scored the rows; default: only the decisions are learned from.

    Raises:
        InputError: If columns are missing, or the references have another width than the states.
    """
    if ROW_ID not in dataset.column_names:
        raise InputError(f"wanted rows with {ROW_ID}, got columns {dataset.column_names}: run larf-curate select first")
    ids = dataset.with_format(None)[ROW_ID][:]
    labels = {
        index: decisions[row] in POSITIVE
        for index, row in enumerate(ids)
        if decisions.get(row) in (*POSITIVE, *NEGATIVE)
    }
    decided, positive = np.array(list(labels), np.intp), np.array(list(labels.values()), bool)
    return rank(StoredRows.of(dataset), decided, positive, references)


def rank(
    rows: StoredRows,
    decided: NDArray[np.intp],
    positive: NDArray[np.bool_],
    references: References | None = None,
    *,
    judge: bool = True,
) -> Learned:
    """Re-rank stored rows; see `learn`.

    Args:
        rows: The n rows.
        decided: Indices of the decided rows, shape (m,); rows without a score are ignored.
        positive: Whether each of them was decided to be removed or edited, shape (m,).
        references: References of the profile that scored the rows.
        judge: Whether to compute the held-out accuracy, which takes up to five more fits.

    Raises:
        InputError: If the references have another width than the states.
    """
    scored = np.isfinite(rows.scores)
    positive, decided = positive[scored[decided]], decided[scored[decided]]
    space = Space.of(rows, decided, references)
    directions = np.zeros((len(rows.scores), space.basis.shape[1]), np.float32)
    directions[rows.has_state] = space(rows.states)
    regression = Regression.of(rows, directions, space, references)
    weights = regression.fit(decided, positive)
    # What the decisions changed, without the constant: it shifts all rows equally, and scores should stay comparable.
    correction = regression.features[:, 1:] @ (weights - regression.prior_mean)[1:].astype(np.float32)
    return Learned(
        scores=(rows.scores + regression.score_std * correction).astype(np.float32),
        chances=np.where(scored, expit(regression.features @ weights.astype(np.float32)), np.nan),
        directions=directions,
        removed=int(positive.sum()),
        kept=int((~positive).sum()),
        held_out=_held_out_accuracy(regression, rows.scores, decided, positive) if judge else None,
    )


def _held_out_accuracy(
    regression: Regression, scores: Floats, decided: NDArray[np.intp], positive: NDArray[np.bool_]
) -> HeldOutAccuracy | None:
    smaller_class = min(int(positive.sum()), int((~positive).sum()))
    if smaller_class < 2:
        return None
    from sklearn.metrics import average_precision_score, roc_auc_score  # take a second
    from sklearn.model_selection import StratifiedKFold

    learned = np.empty(len(decided))
    folds = StratifiedKFold(min(FOLDS, smaller_class), shuffle=True, random_state=0)
    for train, test in folds.split(decided, positive):
        weights = regression.fit(decided[train], positive[train])
        learned[test] = regression.features[decided[test]] @ weights
    return HeldOutAccuracy(
        auroc=float(roc_auc_score(positive, learned)),
        average_precision=float(average_precision_score(positive, learned)),
        machine_auroc=float(roc_auc_score(positive, scores[decided])),
        machine_average_precision=float(average_precision_score(positive, scores[decided])),
        enough=smaller_class >= MIN_PER_CLASS,
    )
