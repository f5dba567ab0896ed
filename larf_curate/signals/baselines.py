"""What a score must beat: row length and word counts, which need no model at all.

Source: representation probes can match word n-grams and fail elsewhere, https://arxiv.org/abs/2509.03888.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.signals.held_out import fold_of

Scores = NDArray[np.float32]
Baseline = Callable[[Sequence[str]], Scores]
"""Scores n texts; returns shape (n,), high = unsafe."""


def length(unsafe: Sequence[str], others: Sequence[str]) -> Baseline:
    """Logarithm of a text's length in characters, its sign turned so that unsafe references lie higher in the median.

    Args:
        unsafe: Texts of unsafe references, at least one.
        others: Texts of safe references and neutral rows, at least one.
    """
    sign = 1 if np.median(_log_lengths(unsafe)) >= np.median(_log_lengths(others)) else -1
    return lambda texts: sign * _log_lengths(texts)


def tfidf(unsafe: Sequence[str], others: Sequence[str]) -> Baseline:
    """Logistic regression on TF-IDF of single words and pairs of words; log-odds of unsafe.

    Args:
        unsafe: Texts of unsafe references, at least one.
        others: Texts of safe references and neutral rows, at least one.
    """
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    model = make_pipeline(vectors, LogisticRegression(C=10, class_weight="balanced", max_iter=1000))
    model.fit([*unsafe, *others], [1] * len(unsafe) + [0] * len(others))
    return lambda texts: np.asarray(model.decision_function(texts) if len(texts) else [], np.float32)


BASELINES: dict[str, Callable[[Sequence[str], Sequence[str]], Baseline]] = {"length": length, "tfidf": tfidf}


def held_out_texts(
    fit: Callable[[Sequence[str], Sequence[str]], Baseline],
    sides: Sequence[Sequence[str]],
) -> list[Scores]:
    """Score texts by a baseline fitted without their fold; see `larf_curate.signals.held_out`.

    Args:
        fit: Makes the baseline.
        sides: Texts of unsafe references, safe references and neutral rows, at least 2 each.

    Returns:
        Scores of each side, texts in their order.
    """
    folds = min(5, *map(len, sides))
    places = [fold_of(len(side), folds) for side in sides]
    scores = [np.zeros(len(side), np.float32) for side in sides]
    for fold in range(folds):
        kept = [_at(side, place != fold) for side, place in zip(sides, places, strict=True)]
        baseline = fit(kept[0], [text for side in kept[1:] for text in side])
        for side, place, found in zip(sides, places, scores, strict=True):
            found[place == fold] = baseline(_at(side, place == fold))
    return scores


def text_of(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """All turns of a row, a line break between them.

    Args:
        row: A conversation in any recognised format.
        columns: Column names by role, if they are not to be found.

    Raises:
        ConversationError: If it is none.
    """
    return "\n".join(message["content"] for message in to_messages(row, columns))


def _at(texts: Sequence[str], mask: NDArray[np.bool_]) -> list[str]:
    return [text for text, wanted in zip(texts, mask, strict=True) if wanted]


def _log_lengths(texts: Sequence[str]) -> Scores:
    return np.log1p(np.fromiter((len(text) for text in texts), np.float32, len(texts)))
