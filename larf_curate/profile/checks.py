"""What would make a profile wrong: neutral rows that are references, sides that are one, another model."""

import logging
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ProfileMismatchError, ReferenceSetError
from larf_curate.signals.protocol import mean_unit
from larf_curate.states import States, Vectors

logger = logging.getLogger(__name__)
DRIFT = {"float32": 0.005, "bfloat16": 0.05, "float16": 0.05}
"""Largest relative difference of the first reference's state, recorded against computed, for a model to be the same."""
FEW = 10
NEAR = 0.9
"""Share of its characters that an answer has in common with its counterpart for the two to say the same."""
OPENING = 500
"""Characters of an answer that are compared, as the time goes with their square."""
SAME_PROMPT = 8
"""Most answers to one prompt that an answer is compared with."""
ALIKE = 1e-3
"""Smallest distance of the mean unit states of unsafe and safe references for them to be two sides."""


def check_apart(refs: ReferenceSet, ordinary: Sequence[Row]) -> None:
    """Refuse neutral rows that are references."""
    known = {
        _said(row): f"{side} reference {index}"
        for side, rows in (("safe", refs.safe), ("unsafe", refs.unsafe))
        for index, row in enumerate(rows)
    }
    for index, row in enumerate(ordinary):
        if same := known.get(_said(row)):
            raise ReferenceSetError(
                f"neutral row {index} is {same} of {refs.source} too: wanted ordinary rows that are no references; "
                "take it out of the neutral rows"
            )


def _said(row: Row) -> tuple[tuple[str, str], ...]:
    """What user and assistant say, whatever the case and the spaces."""
    turns = [(turn["role"], " ".join(turn["content"].split()).casefold()) for turn in to_messages(row)]
    return tuple(turn for turn in turns if turn[0] != "system")


def check_pairs(refs: ReferenceSet) -> None:
    """Refuse references most of which say the same on both sides, or nearly so.

    Raises:
        ReferenceSetError: If more than half of the unsafe ones are safe ones too, or have over 90 % of their answer's
            characters in common with that of their pair or with one to the same prompt.
    """
    safe = set(map(_said, refs.safe))
    same = sum(_said(row) in safe for row in refs.unsafe)
    if 2 * same > len(refs.unsafe):
        raise ReferenceSetError(
            f"wanted unsafe and safe references that differ, got {same} of {len(refs.unsafe)} unsafe ones among the "
            f"safe ones of {refs.source} too: do both sides hold the same answers?"
        )
    near = sum(any(_near(answer, other) for other in others) for answer, others in _counterparts(refs))
    if 2 * near > len(refs.unsafe):
        raise ReferenceSetError(
            f"wanted unsafe and safe references that differ, got {near} of {len(refs.unsafe)} unsafe ones of "
            f"{refs.source} whose answers are alike to a safe one's in over {NEAR:.0%} of their characters: does one "
            "side hold copies of the other?"
        )


def _counterparts(refs: ReferenceSet) -> Iterator[tuple[str, list[str]]]:
    """Each unsafe answer with those safe ones that it is a pair with or that answer the same prompt."""
    answers: dict[tuple[str, ...], list[str]] = {}
    safe = [_asked_and_answered(row) for row in refs.safe]
    for asked, answered in safe:
        answers.setdefault(asked, []).append(answered)
    for index, (asked, answered) in enumerate(map(_asked_and_answered, refs.unsafe)):
        others = answers.get(asked, [])[:SAME_PROMPT] if asked else []
        yield answered, [*others, safe[index][1]] if refs.paired else others


def _asked_and_answered(row: Row) -> tuple[tuple[str, ...], str]:
    """What the others say, and what the assistant says."""
    said = _said(row)
    asked = tuple(text for role, text in said if role != "assistant")
    return asked, "\n".join(text for role, text in said if role == "assistant")


def _near(one: str, other: str) -> bool:
    """Whether two answers are about as long and open with nearly the same characters."""
    shorter, longer = sorted(map(len, (one, other)))
    matcher = SequenceMatcher(None, one[:OPENING], other[:OPENING], autojunk=False)
    return shorter > NEAR * longer and matcher.quick_ratio() > NEAR and matcher.ratio() > NEAR


def warn_few(refs: ReferenceSet) -> None:
    """Say so when a side has too few references, copies not counted, to stand for all that is unsafe or safe."""
    if (count := min(len(set(map(_said, side))) for side in (refs.unsafe, refs.safe))) < FEW:
        logger.warning("only %d references on a side: scores rest on little; %d or more are wanted", count, FEW)


def check_unlike(states: dict[str, States]) -> None:
    """Refuse references whose two sides the model cannot tell apart at any layer."""
    difference = mean_unit(states["unsafe"]["last"]) - mean_unit(states["safe"]["last"])
    if np.linalg.norm(difference, axis=-1).max() < ALIKE:
        raise ReferenceSetError(
            "wanted unsafe and safe references that differ, got two sides with the same states (mean cosine difference "
            f"below {ALIKE:g} at every layer): do both sides hold the same answers?"
        )


def check_prompts(unsafe: Sequence[Row], neutral: Sequence[Row], signal: str, *, needed: bool) -> None:
    """Refuse a side that is mostly plain text without prompts; warn where the signal reads none.

    Args:
        unsafe: The unsafe references.
        neutral: The neutral rows.
        signal: The profile's signal.
        needed: Whether it reads prompts.

    Raises:
        ReferenceSetError: If they are needed.
    """
    for side, rows in (("unsafe references", unsafe), ("neutral rows", neutral)):
        plain = sum(len(_said(row)) < 2 for row in rows)
        if 2 * plain <= len(rows):
            continue
        told = f"{plain} of {len(rows)} {side} are plain text without a prompt"
        if needed:
            raise ReferenceSetError(
                f"{told}, and the signal {signal} reads prompts: give conversations, or take a signal that reads "
                "answers alone, as harmful does"
            )
        logger.warning("%s: erosion, which goes by prompts, says little in this profile", told)


def check_drift(computed: Vectors, recorded: Vectors, *, allowed: float, model_id: str, built_with: str) -> None:
    """Refuse a model whose state of the first reference is not the recorded one.

    Args:
        computed: Shape (1, layers, d).
        recorded: Shape (1, layers, d).
        allowed: Largest relative difference.
        model_id: The model at hand.
        built_with: The model that the profile was built with.

    Raises:
        ProfileMismatchError: If they differ by more than rounding.
    """
    drift = np.linalg.norm(computed - recorded, axis=-1) / np.linalg.norm(recorded, axis=-1)
    if not drift.max() <= allowed:
        raise ProfileMismatchError(
            f"{model_id} is not the model this profile was built with ({built_with}): its states "
            f"differ by {drift.max():.1%}, wanted at most {allowed:.1%}; build a profile for it"
        )
