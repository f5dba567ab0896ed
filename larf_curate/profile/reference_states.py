"""States of references and neutral rows, all of which must be scorable."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from larf_curate.conversation.chat_template import Renderer, Tokenizer, Tokens
from larf_curate.conversation.schemas import Row
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError
from larf_curate.models.hidden_states import StateReader
from larf_curate.profile.matching import match_lengths
from larf_curate.states import POSITIONS, States, Vectors

SIDES = ("unsafe", "safe", "neutral")
MATCHED = "_matched"
"""Ending of the names of sides whose answers were cut to the length of their counterparts."""
CHUNK = 32
"""Rows between two steps of the progress bar."""


def rows_by_side(
    refs: ReferenceSet, neutral: Sequence[Row], tokenizer: Tokenizer, *, match: bool
) -> dict[str, Sequence[Row]]:
    """The rows of every side; with ``match`` also the sides in which answers are cut, if any are.

    Args:
        refs: The references.
        neutral: Ordinary rows.
        tokenizer: Counts the tokens.
        match: Whether to cut long reference answers; see `match_lengths`.
    """
    sides: dict[str, Sequence[Row]] = dict(zip(SIDES, (refs.unsafe, refs.safe, neutral), strict=True))
    if match:
        matched = match_lengths(refs, tokenizer)
        sides |= {f"{side}{MATCHED}": getattr(matched, side) for side, count in matched.cut.items() if count}
    return sides


def read_sides(reader: StateReader, sides: Mapping[str, Sequence[Row]]) -> dict[str, States]:
    """Read the states of the rows of every side, under one progress bar; see `read_states` for the errors.

    Rows without a prompt get an ordinary one: the mean prompt state of the neutral rows that have one.
    """
    with tqdm(total=sum(map(len, sides.values())), desc="references", unit="row") as bar:
        states = {side: read_states(reader, rows, side.removesuffix(MATCHED), bar) for side, rows in sides.items()}
    ordinary = states["neutral"]["prompt"]
    plain = _without_prompt(ordinary)
    mean = 0.0 if plain.all() else ordinary[~plain].mean(axis=0)
    for side in states.values():
        side["prompt"][_without_prompt(side["prompt"])] = mean
    return states


def _without_prompt(prompts: Vectors) -> NDArray[np.bool_]:
    """Which rows had no prompt, shape (n,), by prompt states of shape (n, layers, d)."""
    return np.asarray(np.isnan(prompts[:, 0, 0]))


def read_states(reader: StateReader, rows: Sequence[Row], side: str, bar: "tqdm[Any] | None" = None) -> States:
    """Read the states after the last turn of each reference; one that cannot be scored would shift the pairs.

    Args:
        reader: The model.
        rows: n references.
        side: What to call them in errors.
        bar: A progress bar to move on by n.

    Returns:
        States of shape (n, layers, d) at every position; NaN for the prompt of plain text, which has none.

    Raises:
        ReferenceSetError: If one cannot be scored or its states are not finite.
    """
    tokens = _tokens(reader, rows, side)
    parts = []
    for start in range(0, max(len(tokens), 1), CHUNK):
        parts.append(reader(tokens[start : start + CHUNK], POSITIONS))
        if bar is not None:
            bar.update(len(tokens[start : start + CHUNK]))
    states: States = {position: np.concatenate([part[position] for part in parts]) for position in POSITIONS}
    for position, values in states.items():
        if not np.isfinite(values).all():
            raise ReferenceSetError(
                f"the model gives non-finite {position} states for {side} references in this dtype: "
                "build the profile in bfloat16 or float32"
            )
    states["prompt"][[item.turns[0].start == 0 for item in tokens]] = np.nan
    return states


def _tokens(reader: StateReader, rows: Sequence[Row], side: str) -> list[Tokens]:
    tokens = []
    for index, item in enumerate(Renderer(reader.tokenizer, reader.max_length)(rows)):
        if item.tokens is None:
            raise ReferenceSetError(f"{side} reference {index} cannot be scored: {item.reason}")
        tokens.append(replace(item.tokens, turns=item.tokens.turns[-1:]))
    return tokens
