"""Reading the states of references and neutral rows, every one of which must be scorable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm.contrib.logging import logging_redirect_tqdm

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import Row
from larf_curate.conversation.templates import Tokenizer
from larf_curate.conversation.truncation import Tokens
from larf_curate.data.prompts import overrejection_prompts
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import ReferenceSetError
from larf_curate.profile.matching import match_lengths
from larf_curate.profile.state_cache import groups
from larf_curate.progress import progress
from larf_curate.states import POSITIONS, Position, States, Vectors

if TYPE_CHECKING:
    from tqdm import tqdm

SIDES = ("unsafe", "safe", "neutral")
BORDERLINE = "borderline"
"""Name of the prompts that sound harmful and are not; only their prompt states are read."""
MATCHED = "_matched"
"""Suffix of the names of sides whose answers were cut to the length of their counterparts."""


class RowReader(Protocol):
    """What reads the states of rows: a `StateReader`, or one with a cache."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

    def renderer(self) -> Renderer:
        """A renderer of rows for the model."""

    def columns(self) -> Mapping[str, str] | None:
        """Column names by role."""

    def __call__(self, conversations: Sequence[Tokens], positions: Sequence[Position]) -> States:
        """States of every turn; see `StateReader`."""


def rows_by_side(
    refs: ReferenceSet, neutral: Sequence[Row], reader: RowReader, *, match: bool
) -> dict[str, Sequence[Row]]:
    """The rows of every side.

    Args:
        refs: The references.
        neutral: Neutral rows.
        reader: Reads the model; its tokenizer determines the lengths.
        match: Whether to cut long reference answers; see `match_lengths`.

    Returns:
        Rows by side: ``unsafe``, ``safe`` and ``neutral``; ``borderline``, the packaged prompts that sound harmful
        and are not, if the safe references are refusals; with ``match`` also ``unsafe_matched`` and ``safe_matched``
        if an answer of that side was cut.
    """
    sides: dict[str, Sequence[Row]] = dict(zip(SIDES, (refs.unsafe, refs.safe, neutral), strict=True))
    if refs.refuses:  # with an answer, which a conversation needs; it comes after what is read
        sides[BORDERLINE] = [{"prompt": prompt, "response": "OK."} for prompt in overrejection_prompts()]
    if match:
        matched = match_lengths(refs, reader.tokenizer, columns=reader.columns())
        sides |= {f"{side}{MATCHED}": getattr(matched, side) for side, count in matched.cut.items() if count}
    return sides


def read_sides(
    reader: RowReader, sides: Mapping[str, Sequence[Row]], *, remark: Callable[[], str] = str
) -> dict[str, States]:
    """Read the states of the rows of every side with one progress bar; see `read_states` for the errors.

    Of a side whose answers were cut, only the cut ones are read: the others have the states of the original side. Rows
    without a prompt are given the mean prompt state of the neutral rows that have one.

    Args:
        reader: Reads the model.
        sides: Rows by side; see `rows_by_side`.
        remark: Called after each side for what the bar shows besides the rows.
    """
    count = sum(map(len, sides.values()))
    with progress(total=count, label="References", unit="row") as bar, logging_redirect_tqdm(tqdm_class=type(bar)):
        states: dict[str, States] = {}
        for side, rows in sides.items():
            original = side.removesuffix(MATCHED)
            changed = [i for i, row in enumerate(rows) if side == original or row is not sides[original][i]]
            chosen = [rows[i] for i in changed]
            read = read_states(reader, chosen, original, bar, positions_of(side), numbers=changed)
            states[side] = read if side == original else _replaced(states[original], changed, read)
            bar.set_postfix_str(remark(), refresh=False)
            bar.update(len(rows) - len(changed))
    neutral_prompts = states["neutral"]["prompt"]
    plain = _without_prompt(neutral_prompts)
    mean = 0.0 if plain.all() else neutral_prompts[~plain].mean(axis=0)
    for found in states.values():
        found["prompt"][_without_prompt(found["prompt"])] = mean
    return states


def _replaced(states: States, rows: Sequence[int], others: States) -> States:
    """A copy of states of shape (n, layers, d) in which some rows have others."""
    copies = {position: values.copy() for position, values in states.items()}
    for position, values in copies.items():
        values[list(rows)] = others[position]
    return copies


def positions_of(side: str) -> Sequence[Position]:
    """Positions at which the states of a side are read."""
    return ("prompt",) if side == BORDERLINE else POSITIONS


def _without_prompt(prompts: Vectors) -> NDArray[np.bool_]:
    """Mask of the rows without a prompt, shape (n,), from prompt states of shape (n, layers, d)."""
    return np.asarray(np.isnan(prompts[:, 0, 0]))


def read_states(
    reader: RowReader,
    rows: Sequence[Row],
    side: str,
    bar: "tqdm[Any] | None" = None,
    positions: Sequence[Position] = POSITIONS,
    *,
    numbers: Sequence[int] | None = None,
) -> States:
    """Read the states of the last turn of each reference.

    Args:
        reader: Reads the model.
        rows: n references.
        side: Name of the side in error messages.
        bar: A progress bar to advance by n.
        positions: Positions to read; the prompt is among them.
        numbers: Numbers of the references in error messages; default: from 0 on.

    Returns:
        States of shape (n, layers, d) at these positions; NaN for the prompt of plain text, which has none.

    Raises:
        ReferenceSetError: If a row cannot be scored or its states are not finite.
    """
    tokens = _tokens(reader, rows, side, range(len(rows)) if numbers is None else numbers)
    parts = []
    for group in groups(tokens):
        parts.append(reader(group, positions))
        if bar is not None:
            bar.update(len(group))
    states: States = {position: np.concatenate([part[position] for part in parts]) for position in positions}
    for position, values in states.items():
        if not np.isfinite(values).all():
            raise ReferenceSetError(
                f"the model gives non-finite {position} states for {side} references in this dtype: "
                "build the profile in bfloat16 or float32"
            )
    # Marked only after the check above; `read_sides` replaces the marks.
    states["prompt"][[item.turns[0].start == 0 for item in tokens]] = np.nan
    return states


def _tokens(reader: RowReader, rows: Sequence[Row], side: str, numbers: Sequence[int]) -> list[Tokens]:
    """Tokenize references, with their last turn only; skipping one would shift the pairs, so it is an error."""
    tokens = []
    for number, item in zip(numbers, reader.renderer()(rows), strict=True):
        if item.tokens is None:
            raise ReferenceSetError(f"{side} reference {number} cannot be scored: {item.reason}")
        tokens.append(replace(item.tokens, turns=item.tokens.turns[-1:]))
    return tokens
