"""Explain a row's score: the contribution of each of its tokens.

The running score at a token is the score that the row would have if it ended there; before the answer begins, the
token itself counts as the answer. The weight of a token is the difference of its running score to that of the token
before. So the score is exactly the sum of all weights and of the start, which is the running score where the row's own
text begins. All running scores come from one forward pass, since the states of a causal model depend only on the tokens
up to theirs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from larf_curate.columns import source_columns
from larf_curate.conversation.schemas import Row
from larf_curate.conversation.truncation import Tokens, Turn
from larf_curate.data.tables import undecoded
from larf_curate.manifests import check_profile
from larf_curate.models.hidden_states import StateReader
from larf_curate.profile import SafetyProfile
from larf_curate.scoring.selection import Selection
from larf_curate.states import POSITIONS, States

COLUMN = "larf_tokens"
TYPE = List({"text": Value("string"), "weight": Value("float32")})
PROBES = ({"prompt": "0", "response": "0"}, {"prompt": "x", "response": "x"})
"""Two rows that differ from the first character: their common prefix is the text of the chat template."""


@dataclass(frozen=True, kw_only=True)
class TokenWeight:
    """The text of a token, and its contribution to the score; positive means towards unsafe."""

    text: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The score of a row, decomposed into tokens.

    Args:
        score: The row's score, the sum of ``start`` and all weights; higher means closer to unsafe.
        start: Running score at the first token of the row's own text.
        tokens: The tokens of the row's own text up to the end of its highest-scoring turn.
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
    """Decompose the scores of rows, token by token.

    Args:
        profile: The profile to score with.
        rows: The rows.
        columns: Column names by role; default: inferred from the rows.
        model: Model path, if the model has moved since the profile was built.
        device: A torch device; default: the first available accelerator, else the CPU.

    Returns:
        One explanation per row, in order; None for a row that cannot be scored.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If the model is not the one of the profile.
    """
    reader = profile.reader(model=model, device=device)
    render = reader.renderer(columns)
    prefix = _template_prefix(reader)
    return [_explain(item.tokens, reader, profile, prefix) if item.tokens else None for item in render(rows)]


def explain_flagged(
    selection: Selection, profile: SafetyProfile, *, rows: int, model: str | None = None, device: str | None = None
) -> Selection:
    """Add a column ``larf_tokens`` to the flagged rows: text and weight of each token, which the review shades by it.

    Args:
        selection: The selection; its flagged rows are sorted worst first.
        profile: The profile that scored the rows.
        rows: Number of rows to explain, from the worst; the others get null.
        model: Model path, if the model has moved since the profile was built.
        device: A torch device; default: the first available accelerator, else the CPU.

    Returns:
        The selection with the new column; an existing one is replaced.

    Raises:
        ModelError: If the model cannot be loaded.
        ProfileMismatchError: If the profile or the model is not the one that scored the rows.
    """
    check_profile(profile, selection.scored.get("profile"))
    flagged = selection.flagged
    if not len(flagged):  # to which `datasets` cannot add a column
        features = Features({**flagged.features, COLUMN: TYPE})
        return replace(selection, flagged=Dataset.from_dict({name: [] for name in features}, features=features))
    flagged = flagged.remove_columns([COLUMN] if COLUMN in flagged.column_names else [])
    source = flagged.select_columns(source_columns(flagged.column_names))
    worst = list(undecoded(source.select(range(min(rows, len(source))))))
    columns = selection.scored.get("source", {}).get("columns")
    explanations = explain(profile, worst, columns=columns, model=model, device=device)
    cells: list[Any] = [item and [vars(token) for token in item.tokens] for item in explanations]
    cells += [None] * (len(flagged) - len(cells))
    return replace(selection, flagged=flagged.add_column(COLUMN, cells, feature=TYPE))


def _explain(tokens: Tokens, reader: StateReader, profile: SafetyProfile, prefix: list[int]) -> Explanation | None:
    """Explain one row; ``prefix`` are the tokens of the chat template before a row's own text."""
    signal = profile.fit()
    turn = tokens.turns[0]
    if len(tokens.turns) > 1:  # the score of a row is that of its highest turn
        states = profile.fill_prompts(reader([tokens], POSITIONS), [tokens])
        turn = tokens.turns[int(signal(states).mean(axis=1).argmax())]
    ids = tokens.ids[: turn.end + 1]
    first = min(len(commonprefix([prefix, ids])), turn.end)
    # A turn per token makes the reader return the states of all tokens.
    token_states = reader([Tokens(ids, tuple(Turn(index, index) for index in range(len(ids))))], ("last",))["last"]
    if not np.isfinite(token_states).all():
        return None
    ends = [Tokens(ids, (Turn(turn.start, index),)) for index in range(first, len(ids))]
    scores = signal(profile.fill_prompts(_running_states(token_states, turn.start, first), ends)).mean(axis=1)
    weights = np.diff(scores, prepend=scores[:1])
    texts = _token_texts(reader.tokenizer, ids[first:])
    return Explanation(
        score=float(scores[-1]),
        start=float(scores[0]),
        tokens=tuple(TokenWeight(text=t, weight=float(w)) for t, w in zip(texts, weights, strict=True)),
    )


def _running_states(states: Any, start: int, first: int) -> States:  # noqa: ANN401  an array
    """States of the rows that would end at each token.

    Args:
        states: States of all tokens, shape (tokens, layers, d).
        start: Index of the answer's first token.
        first: Index of the first token at which a row ends.
    """
    ends = np.arange(first, len(states))
    sums = np.cumsum(np.concatenate([np.zeros_like(states[:1]), states], dtype=np.float64), axis=0)
    starts = np.minimum(start, ends)  # before the answer, the token itself counts as the answer
    counts = (ends - starts + 1)[:, None, None]
    length = np.repeat((ends + 1.0)[:, None, None], states.shape[1], axis=1)
    return {
        "last": states[ends],
        "prompt": states[np.maximum(starts - 1, 0)],
        "mean": ((sums[ends + 1] - sums[starts]) / counts).astype(np.float32),
        "length": length.astype(np.float32),
    }


def _template_prefix(reader: StateReader) -> list[int]:
    """Token ids that the chat template writes before the text of any row."""
    found = [item.tokens.ids for item in reader.renderer()(PROBES) if item.tokens]
    return list(commonprefix(found)) if len(found) == len(PROBES) else []


def _token_texts(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:  # noqa: ANN401  any tokenizer of transformers
    """Text of each token; if several tokens share a character, the last one gets it and the others are empty."""
    pending: list[int] = []
    for index, token in enumerate(ids):
        pending.append(token)
        text = str(tokenizer.decode(pending))
        # Part of a UTF-8 character decodes to a replacement character; it has at most 4 bytes, so at most 4 tokens.
        if text.endswith("\N{REPLACEMENT CHARACTER}") and len(pending) < 4 and index + 1 < len(ids):
            yield ""
            continue
        pending = []
        yield text
