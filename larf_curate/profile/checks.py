"""Validation of references, neutral rows and model before a profile is built or used."""

import logging
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

import numpy as np

from larf_curate.conversation.refusals import RefusalDetector
from larf_curate.conversation.schemas import Row, to_messages
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ProfileMismatchError, ReferenceSetError
from larf_curate.signals.protocol import mean_unit
from larf_curate.states import States, Vectors

logger = logging.getLogger(__name__)
MAX_DRIFT = {"float32": 0.005, "bfloat16": 0.05, "float16": 0.05}
"""Largest relative difference between the computed and the recorded state of the first reference, by dtype."""
MAX_QUANTISED_DRIFT = 0.2
"""The same for quantised weights, whose kernels round by what is in the batch: up to 9 % was seen in 8 bits."""
MIN_REFERENCES = 10
"""References per side below which there is a warning, since scores and figures are then uncertain."""
NEAR_DUPLICATE = 0.9
"""Similarity of two answers, as a share of their characters, above which they count as the same."""
COMPARED_CHARACTERS = 500
"""Characters of an answer that are compared, since the run time is quadratic in them."""
SAME_PROMPT = 8
"""Most answers to one prompt that an answer is compared with."""
MIN_SIDE_DISTANCE = 1e-3
"""Smallest distance between the mean unit states of unsafe and safe references that counts as a difference."""


def check_disjoint(refs: ReferenceSet, neutral: Sequence[Row]) -> None:
    """Check that no neutral row is a reference too.

    Raises:
        ReferenceSetError: If one is, apart from case and whitespace.
    """
    known = {
        _normalised_turns(row): f"{side} reference {index}"
        for side, rows in (("safe", refs.safe), ("unsafe", refs.unsafe))
        for index, row in enumerate(rows)
    }
    for index, row in enumerate(neutral):
        if same := known.get(_normalised_turns(row)):
            raise ReferenceSetError(
                f"neutral row {index} is {same} of {refs.source} too: wanted neutral rows that are not references; "
                "remove it from the neutral rows"
            )


def _normalised_turns(row: Row) -> tuple[tuple[str, str], ...]:
    """Role and text of all turns except system messages, with case and whitespace normalised."""
    turns = [(turn["role"], " ".join(turn["content"].split()).casefold()) for turn in to_messages(row)]
    return tuple(turn for turn in turns if turn[0] != "system")


def check_sides_differ(refs: ReferenceSet) -> None:
    """Check that most unsafe references are not safe ones too, exactly or nearly.

    Raises:
        ReferenceSetError: If more than half of the unsafe ones are safe ones too, or have an answer that shares over
            90 % of its characters with the safe answer of the same pair or with one to the same prompt.
    """
    safe = set(map(_normalised_turns, refs.safe))
    same = sum(_normalised_turns(row) in safe for row in refs.unsafe)
    if 2 * same > len(refs.unsafe):
        raise ReferenceSetError(
            f"wanted unsafe and safe references that differ, got {same} of {len(refs.unsafe)} unsafe ones among the "
            f"safe ones of {refs.source} too: do both sides hold the same answers?"
        )
    near = sum(any(_is_near_duplicate(answer, other) for other in others) for answer, others in _counterparts(refs))
    if 2 * near > len(refs.unsafe):
        raise ReferenceSetError(
            f"wanted unsafe and safe references that differ, got {near} of {len(refs.unsafe)} unsafe ones of "
            f"{refs.source} whose answers share over {NEAR_DUPLICATE:.0%} of their characters with a safe one's: does "
            "one side hold copies of the other?"
        )


def _counterparts(refs: ReferenceSet) -> Iterator[tuple[str, list[str]]]:
    """Each unsafe answer with the safe ones to compare it with: its pair's, and those to the same prompt."""
    answers: dict[tuple[str, ...], list[str]] = {}
    safe = [_prompt_and_answer(row) for row in refs.safe]
    for prompt, answer in safe:
        answers.setdefault(prompt, []).append(answer)
    for index, (prompt, answer) in enumerate(map(_prompt_and_answer, refs.unsafe)):
        others = answers.get(prompt, [])[:SAME_PROMPT] if prompt else []
        yield answer, [*others, safe[index][1]] if refs.same_size else others


def _prompt_and_answer(row: Row) -> tuple[tuple[str, ...], str]:
    """All turns of others, and the assistant's turns joined."""
    turns = _normalised_turns(row)
    prompt = tuple(text for role, text in turns if role != "assistant")
    return prompt, "\n".join(text for role, text in turns if role == "assistant")


def _is_near_duplicate(one: str, other: str) -> bool:
    """Whether two answers have similar lengths and nearly the same characters at the beginning."""
    shorter, longer = sorted(map(len, (one, other)))
    matcher = SequenceMatcher(None, one[:COMPARED_CHARACTERS], other[:COMPARED_CHARACTERS], autojunk=False)
    return (
        shorter > NEAR_DUPLICATE * longer
        and matcher.quick_ratio() > NEAR_DUPLICATE  # an upper bound of the ratio, and cheap
        and matcher.ratio() > NEAR_DUPLICATE
    )


def warn_if_few(refs: ReferenceSet) -> None:
    """Warn if a side has few distinct references, which may not represent all that is unsafe or safe."""
    count = min(len(set(map(_normalised_turns, side))) for side in (refs.unsafe, refs.safe))
    if count < MIN_REFERENCES:
        logger.warning(
            "only %d distinct references on one side: scores are based on few references; use %d or more",
            count,
            MIN_REFERENCES,
        )


def warn_if_not_refusals(refs: ReferenceSet) -> None:
    """Warn if the safe references are no refusals, so that the default signal cannot tell refusals from answers."""
    if not refs.refuses:
        logger.warning(
            "most safe references are not recognised as refusals, which are known in English only: the axis compliance "
            "is off, and a refused harmful request can rank as high as an answered one; give English refusals as safe "
            "references, unless the references are about something else"
        )
    detector = RefusalDetector()
    refusing = sum(detector(to_messages(row)[-1]["content"]) for row in refs.unsafe)
    if 2 * refusing > len(refs.unsafe):
        logger.warning(
            "%d of %d unsafe references are refusals: rows that refuse would score high; are the two sides exchanged?",
            refusing,
            len(refs.unsafe),
        )


def check_states_differ(states: dict[str, States]) -> None:
    """Check that the model separates the two sides of the references at some layer.

    Raises:
        ReferenceSetError: If their mean normalised states are the same at every layer.
    """
    difference = mean_unit(states["unsafe"]["last"]) - mean_unit(states["safe"]["last"])
    if np.linalg.norm(difference, axis=-1).max() < MIN_SIDE_DISTANCE:
        raise ReferenceSetError(
            "wanted unsafe and safe references that differ, got two sides with the same states (mean cosine difference "
            f"below {MIN_SIDE_DISTANCE:g} at every layer): do both sides hold the same answers?"
        )


def check_prompts(unsafe: Sequence[Row], neutral: Sequence[Row], signal: str, *, needed: bool) -> None:
    """Check that most unsafe references and most neutral rows have prompts.

    Args:
        unsafe: The unsafe references.
        neutral: The neutral rows.
        signal: The profile's signal.
        needed: Whether the signal reads prompts; if not, there is only a warning.

    Raises:
        ReferenceSetError: If prompts are needed and more than half of either are plain text.
    """
    for side, rows in (("unsafe references", unsafe), ("neutral rows", neutral)):
        plain = sum(len(_normalised_turns(row)) < 2 for row in rows)
        if 2 * plain <= len(rows):
            continue
        finding = f"{plain} of {len(rows)} {side} are plain text without a prompt"
        if needed:
            raise ReferenceSetError(
                f"{finding}, and the signal {signal} reads prompts: give conversations, or use a signal that reads "
                "answers only, such as harmful"
            )
        logger.warning("%s: erosion, which reads prompts, is not meaningful in this profile", finding)


def check_drift(
    computed: Vectors,
    recorded: Vectors,
    *,
    allowed: float,
    model_id: str,
    built_with: str,
    undated: bool = False,
) -> None:
    """Check that a model is the one a profile was built with, by its state of the first reference.

    Args:
        computed: State of the loaded model, shape (1, layers, d).
        recorded: State in the profile, shape (1, layers, d).
        allowed: Largest relative difference.
        model_id: The loaded model.
        built_with: The model that the profile was built with.
        undated: Whether the chat template writes today's date and the profile does not record the day it was built on.

    Raises:
        ProfileMismatchError: If the states differ by more than rounding at a layer.
    """
    drift = np.linalg.norm(computed - recorded, axis=-1) / np.linalg.norm(recorded, axis=-1)
    if not drift.max() <= allowed:  # so written, NaN is refused too
        differ = f"its states differ by {drift.max():.1%}, wanted at most {allowed:.1%}"
        if undated:
            raise ProfileMismatchError(
                f"{model_id} does not give the states of this profile, built with {built_with}: {differ}; its chat "
                "template writes today's date, which the profile does not record: build the profile again"
            )
        raise ProfileMismatchError(
            f"{model_id} is not the model this profile was built with ({built_with}): {differ}; build a profile for it"
        )
