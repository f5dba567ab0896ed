"""Why this row: how far each token of a row moved its score.

The running score of a row at a token is the score it would have if it ended there; before the answer begins, the token
itself stands for the answer. The weight of a token is what it adds to the running score of the token before. So the
weights and the start, which is the running score where the row's own text begins, add up to the row's score exactly,
and all come out of one forward pass, since no token of a causal model sees what follows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import numpy as np
from datasets import List, Value

from larf_curate.conversation.chat_template import Renderer, Tokens, Turn
from larf_curate.conversation.schemas import Row
from larf_curate.data.tables import undecoded
from larf_curate.manifests import check_profile
from larf_curate.models.hidden_states import StateReader
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.selection import Selection
from larf_curate.states import POSITIONS, States

COLUMN = "larf_tokens"
TYPE = List({"text": Value("string"), "weight": Value("float32")})
PROBES = ({"prompt": "0", "response": "0"}, {"prompt": "x", "response": "x"})
"""Rows whose common beginning is what the chat template puts before a row's own text."""


@dataclass(frozen=True, kw_only=True)
class TokenWeight:
    """A token's text, and how far it moved the score; positive is towards unsafe."""

    text: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A row's score, taken apart.

    Args:
        score: The row's score: ``start`` and all weights together.
        start: The running score where the row's own text begins.
        tokens: Its tokens up to the end of the turn that scores highest.
    """

    score: float
    start: float
    tokens: tuple[TokenWeight, ...]


def explain(
    profile: SafetyProfile,
    rows: Sequence[Row],
    *,
    columns: Mapping[str, str] | None = None,
    model: str | None = None,
    device: str | None = None,
) -> list[Explanation | None]:
    """Take the scores of some rows apart, token by token.

    Args:
        profile: What scores them.
        rows: The rows.
        columns: Column names by role, if they are not to be found.
        model: Where the model lies now, if not where it lay when the profile was built.
        device: A torch device; the first accelerator there is, if left out.

    Returns:
        One a row; None for a row that cannot be scored.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If it is not the profile's.
    """
    reader = profile.reader(model=model, device=device)
    render = Renderer(reader.tokenizer, reader.max_length, columns)
    heading = _heading(reader)
    return [_explain(item.tokens, reader, profile, heading) if item.tokens else None for item in render(rows)]


def explained(
    selection: Selection, profile: SafetyProfile, *, rows: int, model: str | None = None, device: str | None = None
) -> Selection:
    """Add a column ``larf_tokens`` to flagged rows: text and weight of their tokens, which the review shows shaded.

    Args:
        selection: Flagged rows, worst first.
        profile: What scored them.
        rows: Of how many rows; the others have null.
        model: Where the model lies now, if not where it lay when the profile was built.
        device: A torch device; the first accelerator there is, if left out.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If the profile or the model is not the one that scored the rows.
    """
    check_profile(profile, selection.scored.get("profile"))
    flagged = selection.flagged
    bare = flagged.remove_columns([COLUMN] if COLUMN in flagged.column_names else [])
    own = bare.select_columns([name for name in bare.column_names if not name.startswith("larf_")])
    first = list(undecoded(own.select(range(min(rows, len(own))))))
    columns = selection.scored.get("source", {}).get("columns")
    found = explain(profile, first, columns=columns, model=model, device=device)
    cells: list[Any] = [item and [vars(token) for token in item.tokens] for item in found]
    return replace(selection, flagged=bare.add_column(COLUMN, cells + [None] * (len(bare) - len(cells)), feature=TYPE))


def _explain(tokens: Tokens, reader: StateReader, profile: SafetyProfile, heading: list[int]) -> Explanation | None:
    signal = profile.fit()
    turn = tokens.turns[0]
    if len(tokens.turns) > 1:
        states = profile.fill_prompts(reader([tokens], POSITIONS), [tokens])
        turn = tokens.turns[int(signal(states).mean(axis=1).argmax())]
    ids = tokens.ids[: turn.end + 1]
    first = min(len(commonprefix([heading, ids])), turn.end)
    every = reader([Tokens(ids, tuple(Turn(place, place) for place in range(len(ids))))], ("last",))["last"]
    if not np.isfinite(every).all():
        return None
    ends = [Tokens(ids, (Turn(turn.start, place),)) for place in range(first, len(ids))]
    scores = signal(profile.fill_prompts(_running(every, turn.start, first), ends)).mean(axis=1)
    weights = np.diff(scores, prepend=scores[:1])
    texts = _texts(reader.tokenizer, ids[first:])
    return Explanation(
        score=float(scores[-1]),
        start=float(scores[0]),
        tokens=tuple(TokenWeight(text=t, weight=float(w)) for t, w in zip(texts, weights, strict=True)),
    )


def _running(states: Any, start: int, first: int) -> States:  # noqa: ANN401  shape (tokens, layers, d)
    """States of the rows that end at every token from the first on, made of the states of all tokens."""
    places = np.arange(first, len(states))
    sums = np.cumsum(np.concatenate([np.zeros_like(states[:1]), states], dtype=np.float64), axis=0)
    begin = np.minimum(start, places)
    counts = (places - begin + 1)[:, None, None]
    length = np.repeat((places + 1.0)[:, None, None], states.shape[1], axis=1)
    return {
        "last": states[places],
        "prompt": states[np.maximum(begin - 1, 0)],
        "mean": ((sums[places + 1] - sums[begin]) / counts).astype(np.float32),
        "length": length.astype(np.float32),
    }


def _heading(reader: StateReader) -> list[int]:
    """The tokens that a chat template puts before every row."""
    found = [item.tokens.ids for item in Renderer(reader.tokenizer, reader.max_length)(PROBES) if item.tokens]
    return list(commonprefix(found)) if len(found) == len(PROBES) else []


def _texts(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:  # noqa: ANN401  any tokenizer of transformers
    """The text of every token; of several that share one character, the last has it and the others are empty."""
    open_ids: list[int] = []
    for place, number in enumerate(ids):
        open_ids.append(number)
        text = str(tokenizer.decode(open_ids))
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(open_ids) < 4 and place + 1 < len(ids):
            yield ""
            continue
        open_ids = []
        yield text
