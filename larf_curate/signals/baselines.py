"""Text-only baselines, length and TF-IDF, which a score from hidden states should beat.

Why: probes of hidden states can perform no better than word n-grams and fail out of distribution,
https://arxiv.org/abs/2509.03888.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.signals.held_out import FOLDS, fold_of

Scores = NDArray[np.float32]
Baseline = Callable[[Sequence[str]], Scores]
"""Scores n texts; returns shape (n,), float32, higher is unsafe."""


def length(unsafe: Sequence[str], others: Sequence[str]) -> Baseline:
    """Logarithm of a text's length in characters, signed so that the median unsafe reference is not below the others'.

    ``± log(1 + characters)``; unbounded, higher is unsafe.

    Args:
        unsafe: Texts of unsafe references, at least one.
        others: Texts of safe references and neutral rows, at least one.
    """
    sign = 1 if np.median(_log_lengths(unsafe)) >= np.median(_log_lengths(others)) else -1
    return lambda texts: sign * _log_lengths(texts)


def tfidf(unsafe: Sequence[str], others: Sequence[str]) -> Baseline:
    """Log-odds of unsafe by logistic regression on TF-IDF of word unigrams and bigrams; unbounded, higher is unsafe.

    Args:
        unsafe: Texts of unsafe references, at least one.
        others: Texts of safe references and neutral rows, at least one.
    """
    # scikit-learn's default pattern drops one-letter words and punctuation, of which code and formulas consist.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\w+|[^\w\s]")
    model = make_pipeline(vectorizer, LogisticRegression(C=10, class_weight="balanced", max_iter=1000))
    model.fit([*unsafe, *others], [1] * len(unsafe) + [0] * len(others))
    return lambda texts: np.asarray(model.decision_function(texts) if len(texts) else [], np.float32)


BASELINES: dict[str, Callable[[Sequence[str], Sequence[str]], Baseline]] = {"length": length, "tfidf": tfidf}


def held_out_texts(
    fit: Callable[[Sequence[str], Sequence[str]], Baseline],
    sides: Sequence[Sequence[str]],
) -> list[Scores]:
    """Score texts by a baseline that was fitted without their fold; see `larf_curate.signals.held_out`.

    Args:
        fit: Makes the baseline.
        sides: Texts of unsafe references, safe references and neutral rows, at least 2 each.

    Returns:
        Scores of each side, texts in their order.
    """
    folds = min(FOLDS, *map(len, sides))
    fold_numbers = [fold_of(len(side), folds) for side in sides]
    scores = [np.zeros(len(side), np.float32) for side in sides]
    for fold in range(folds):
        training = [_select(side, numbers != fold) for side, numbers in zip(sides, fold_numbers, strict=True)]
        baseline = fit(training[0], [text for side in training[1:] for text in side])
        for side, numbers, found in zip(sides, fold_numbers, scores, strict=True):
            found[numbers == fold] = baseline(_select(side, numbers == fold))
    return scores


def text_of(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """Text of a row: the contents of all its turns, joined by line breaks.

    Args:
        row: A conversation in any recognised format.
        columns: Column names by role, if they cannot be recognised.

    Raises:
        ConversationError: If the row is not a conversation.
    """
    return "\n".join(message["content"] for message in to_messages(row, columns))


def _select(texts: Sequence[str], mask: NDArray[np.bool_]) -> list[str]:
    return [text for text, selected in zip(texts, mask, strict=True) if selected]


def _log_lengths(texts: Sequence[str]) -> Scores:
    return np.log1p(np.fromiter((len(text) for text in texts), np.float32, len(texts)))
