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
from larf_curate.review.learning.inputs import DecidedRows, Floats, References, StoredRows
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

    Decisions on other datasets are learned from in every fold, and none of them is held out.

    Args:
        auroc: AUROC of the learned score: the probability that it ranks a removed row above a kept one.
        average_precision: Average precision of the learned score.
        machine_auroc: AUROC of ``larf_score``.
        machine_average_precision: Average precision of ``larf_score``.
        enough: Whether there are at least 10 decisions per class; with fewer the figures are too uncertain.
        own_auroc: AUROC of a score learned without the decisions on other datasets; None if there are none.
        own_average_precision: Its average precision.
    """

    auroc: float
    average_precision: float
    machine_auroc: float
    machine_average_precision: float
    enough: bool
    own_auroc: float | None = None
    own_average_precision: float | None = None


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
        earlier: Number of decisions on other datasets that were learned from too.
    """

    scores: NDArray[np.float32]
    chances: NDArray[np.float32]
    directions: NDArray[np.float32]
    removed: int
    kept: int
    held_out: HeldOutAccuracy | None
    earlier: int = 0

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
        return {
            "decisions": self.removed + self.kept,
            "removed": self.removed,
            "kept": self.kept,
            "earlier": self.earlier,
            "held_out": held_out,
        }


def learn(
    dataset: Dataset,
    decisions: Mapping[str, str],
    *,
    references: References | None = None,
    earlier: DecidedRows | None = None,
    need_states: bool = True,
) -> Learned:
    """Re-rank scored rows by people's decisions.

    Args:
        dataset: Rows with ``larf_row_id``, ``larf_score`` and ``larf_state``; ``larf_signals`` is optional.
        decisions: Decisions by row id. ``remove`` and ``edit`` are the positive class, ``keep`` the negative one; other
            decisions, and rows that are not in the dataset, are ignored.
        references: References of the profile that scored the rows; default: only the decisions are learned from.
        earlier: Decided rows of other datasets that the same profile scored, with the signals of the dataset.
        need_states: Whether rows must have states; without them only scores and signals are learned from.

    Raises:
        InputError: If columns are missing, or references or earlier rows have another width than the states.
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
    return rank(StoredRows.of(dataset, need_states=need_states), decided, positive, references, earlier=earlier)


def rank(
    rows: StoredRows,
    decided: NDArray[np.intp],
    positive: NDArray[np.bool_],
    references: References | None = None,
    *,
    earlier: DecidedRows | None = None,
    judge: bool = True,
) -> Learned:
    """Re-rank stored rows; see `learn`.

    Args:
        rows: The n rows.
        decided: Indices of the decided rows, shape (m,); rows without a score are ignored.
        positive: Whether each of them was decided to be removed or edited, shape (m,).
        references: References of the profile that scored the rows.
        earlier: Decided rows of other datasets that the same profile scored, with the same signals.
        judge: Whether to compute the held-out accuracy, which takes up to ten more fits.

    Raises:
        InputError: If references or earlier rows have another width than the states.
    """
    own = len(rows.scores)
    if earlier is not None:
        rows = rows.followed_by(earlier.rows)
        decided = np.concatenate([decided, np.arange(own, len(rows.scores))])
        positive = np.concatenate([positive, earlier.positive])
    scored = np.isfinite(rows.scores)
    positive, decided = positive[scored[decided]], decided[scored[decided]]
    space = Space.of(rows, decided, references)
    directions = np.zeros((len(rows.scores), space.basis.shape[1]), np.float32)
    directions[rows.has_state] = space(rows.states)
    regression = Regression.of(rows, directions, space, references, own=own)
    weights = regression.fit(decided, positive)
    # What the decisions changed, without the constant: it shifts all rows equally, and scores should stay comparable.
    correction = regression.features[:own, 1:] @ (weights - regression.prior_mean)[1:].astype(np.float32)
    chances = expit(regression.features[:own] @ weights.astype(np.float32))
    is_own = decided < own
    return Learned(
        scores=(rows.scores[:own] + regression.score_std * correction).astype(np.float32),
        chances=np.where(scored[:own], chances, np.nan),
        directions=directions[:own],
        removed=int(positive[is_own].sum()),
        kept=int((~positive[is_own]).sum()),
        earlier=int((~is_own).sum()),
        held_out=_held_out_accuracy(regression, rows.scores, decided, positive, is_own) if judge else None,
    )


def _held_out_accuracy(
    regression: Regression,
    scores: Floats,
    decided: NDArray[np.intp],
    positive: NDArray[np.bool_],
    is_own: NDArray[np.bool_],
) -> HeldOutAccuracy | None:
    """Accuracy on the decisions on the ranked rows themselves."""
    own, labels = decided[is_own], positive[is_own]
    smaller_class = min(int(labels.sum()), int((~labels).sum()))
    if smaller_class < 2:
        return None
    from sklearn.metrics import average_precision_score, roc_auc_score  # take a second

    learned = _cross_validated(regression, own, labels, decided[~is_own], positive[~is_own])
    alone = None if is_own.all() else _cross_validated(regression, own, labels, own[:0], labels[:0])
    return HeldOutAccuracy(
        auroc=float(roc_auc_score(labels, learned)),
        average_precision=float(average_precision_score(labels, learned)),
        machine_auroc=float(roc_auc_score(labels, scores[own])),
        machine_average_precision=float(average_precision_score(labels, scores[own])),
        enough=smaller_class >= MIN_PER_CLASS,
        own_auroc=None if alone is None else float(roc_auc_score(labels, alone)),
        own_average_precision=None if alone is None else float(average_precision_score(labels, alone)),
    )


def _cross_validated(
    regression: Regression,
    decided: NDArray[np.intp],
    positive: NDArray[np.bool_],
    others: NDArray[np.intp],
    others_positive: NDArray[np.bool_],
) -> Floats:
    """Log-odds of each decided row from a fit to the others and to further rows, which are in every fit."""
    from sklearn.model_selection import StratifiedKFold  # takes a second

    log_odds = np.empty(len(decided))
    smaller_class = min(int(positive.sum()), int((~positive).sum()))
    folds = StratifiedKFold(min(FOLDS, smaller_class), shuffle=True, random_state=0)
    for train, test in folds.split(decided, positive):
        rows, labels = np.concatenate([decided[train], others]), np.concatenate([positive[train], others_positive])
        log_odds[test] = regression.features[decided[test]] @ regression.fit(rows, labels)
    return log_odds
