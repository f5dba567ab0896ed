"""The three axes of a row as z-scores, `harmful`, `erosion` and `compliance`, and the default signal made of them.

A row can BE harmful (its answer is like the unsafe references), or, although harmless, ERODE refusals (its prompt is
like those that the model refuses, and an answer trains the model not to refuse them). Neither tells a refusal from an
answer: both are about the same harmful matter. The third axis does, and takes refusals out.
"""

import numpy as np

from larf_curate.errors import ReferenceSetError
from larf_curate.signals.calibration import calibrated, standardised
from larf_curate.signals.centred import answer_similarity, unsafe_similarity
from larf_curate.signals.discriminant import discriminant
from larf_curate.signals.protocol import ReferenceStates, Signal, dot
from larf_curate.states import States, Vectors

HARMFUL_MARGIN = 2.0
"""Standard deviations of `harmful` that do not count in `combined`; about one neutral row in 30 exceeds them."""

REFUSAL_WEIGHT = 2
"""Weight in `combined` of what `compliance` is below 0: a refused harmful request is high on both other axes."""


def harmful(refs: ReferenceStates) -> Signal:
    """Similarity of the answer to unsafe answers, as a z-score; unbounded, higher is worse.

    ``z((z(unsafe_similarity) + z(answer_similarity)) / 2)`` with ``z`` as in `calibrated`. `unsafe_similarity` reads
    the end of the answer; `answer_similarity` reads all of it, which is more reliable where the unsafe references are
    of another kind than the harmful rows.
    """
    return calibrated(_mean_similarity, refs)


def _mean_similarity(refs: ReferenceStates) -> Signal:
    # Each part is calibrated first, so that the one with the larger spread does not dominate the mean.
    parts = (calibrated(unsafe_similarity, refs), calibrated(answer_similarity, refs))
    return lambda states: np.mean([part(states) for part in parts], axis=0)


def erosion(refs: ReferenceStates) -> Signal:
    """How much the prompt is like those that the model refuses, as a z-score; unbounded, higher erodes refusals more.

    ``z(w · p)`` with p the prompt's last state, ``z`` as in `standardised`, and w the `discriminant` of the prompts of
    unsafe references from those of neutral rows and from borderline prompts, harmless ones that sound harmful. Length
    is not regressed out: it is among what varies within the groups, which the discriminant discounts. Texts without a
    prompt, references included, are given the mean prompt state of neutral rows.
    """
    return standardised(_refused_prompt, refs)


def _refused_prompt(refs: ReferenceStates) -> Signal:
    others = [refs.neutral["prompt"]]
    if refs.borderline is not None:
        others.append(refs.borderline)
    direction = discriminant(refs.unsafe["prompt"], others)
    return lambda states: dot(states["prompt"], direction)


def compliance(refs: ReferenceStates) -> Signal:
    """How much the answer complies rather than refuses, as a z-score; unbounded, refusals are far below 0.

    ``z(w · m)`` with m the mean state over the answer's tokens, ``z`` as in `standardised`, and w the `discriminant` of
    unsafe answers from refusals, neutral answers showing what varies besides. An ordinary answer is near 0: neutral
    rows are answered, not refused.

    Raises:
        ReferenceSetError: If the safe references are no refusals.
    """
    if not refs.refuses:
        raise ReferenceSetError(
            "compliance needs safe references that refuse, got others: give refusals, or leave this signal out"
        )
    return standardised(_compliant_answer, refs)


def _compliant_answer(refs: ReferenceStates) -> Signal:
    direction = discriminant(refs.unsafe["mean"], [refs.safe["mean"]], others=[refs.neutral["mean"]])
    return lambda states: dot(states["mean"], direction)


def combined(refs: ReferenceStates) -> Signal:
    """``erosion + max(harmful - 2, 0) + 2 min(compliance, 0)``, each a z-score on neutral rows; unbounded.

    Higher is worse. Rows whose answers look like neutral ones rank by what their prompts teach the model, which is what
    fine-tuning on them costs. An answer that stands out adds its excess, even if its prompt looks harmless. A refusal
    is lowered by as much as it is unlike an answer. If the safe references are no refusals, nothing is known about
    refusals, and the last term is left out.
    """
    by_answer, by_prompt = harmful(refs), erosion(refs)
    complies = compliance(refs) if refs.refuses else None

    def score(states: States) -> Vectors:
        risk = by_prompt(states) + np.maximum(by_answer(states) - HARMFUL_MARGIN, 0)
        return np.asarray(risk if complies is None else risk + REFUSAL_WEIGHT * np.minimum(complies(states), 0))

    return score
