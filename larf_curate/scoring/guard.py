"""GuardScorer: the column ``larf_guard``, a guard model's probabilities that requests and answers are unsafe."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from datasets import Features, Value

from larf_curate.columns import GUARD
from larf_curate.conversation.messages import EmptyConversationError, Message, has_content, text_of
from larf_curate.conversation.schemas import schema_for, to_conversation
from larf_curate.errors import ConversationError
from larf_curate.models.guards import Guard, Verdict, load_guard
from larf_curate.models.source import identify

UNJUDGED = ("too_long", "nonsense", "unsupported")
"""Statuses of messages without a probability."""


class GuardScorer:
    """Judges rows with a guard model, as a baseline beside `LarfScorer`: ``ds.map(GuardScorer(model), batched=True)``.

    Every assistant turn is judged together with what precedes it, and so is its request; the highest probability of a
    row counts. System prompts and tools are left out, since guard models take only user and assistant in turn.

    Args:
        model: Folder or Hub id of the guard model; see `larf_curate.models.guards`. It is loaded lazily, once per
            process.
        columns: Column names by role; default: inferred from the rows.
        device: A torch device; default: the first available accelerator.
    """

    def __init__(self, model: str, *, columns: Mapping[str, str] | None = None, device: str | None = None) -> None:
        self.model = model
        self.columns = dict(columns) if columns else None
        self.device = device

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
        """Judge a batch.

        Args:
            batch: Lists by column.

        Returns:
            The column ``larf_guard``: for each row ``request`` and ``answer``, probabilities of unsafe in [0, 1] or
            None, and ``status``: ``ok``, ``truncated`` (a classifier read only the beginning), or why a probability is
            missing: ``empty``, ``malformed``, ``unsupported``, ``too_long`` or ``nonsense``.

        Raises:
            ConversationError: If the columns have no recognised conversation format.
            ModelError: If the model cannot be loaded.
            InputError: If it is no guard model.
        """
        schema = schema_for(batch, self.columns)
        rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        parsed = [self._exchanges(row, schema) for row in rows]
        chats = [chat for chats in parsed if not isinstance(chats, str) for chat in chats]
        verdicts = iter(zip(chats, self._guard(chats) if chats else [], strict=True))
        return {
            GUARD: [
                _cell(chats, []) if isinstance(chats, str) else _cell("ok", [next(verdicts) for _ in chats])
                for chats in parsed
            ]
        }

    def features(self, existing: Features | None = None) -> Features:
        """Column types of a judged dataset; with no argument, that of the new column alone."""
        kinds = {"request": Value("float32"), "answer": Value("float32"), "status": Value("string")}
        return Features({**(existing or {}), GUARD: kinds})

    def describe(self) -> dict[str, str]:
        """What a manifest records of the guard."""
        return {"model": identify(self.model)}

    def __reduce__(self) -> tuple[Any, tuple[str, dict[str, str] | None, str | None]]:
        return _rebuild, (self.model, self.columns, self.device)  # without the loaded model

    @cached_property
    def _guard(self) -> Guard:
        return load_guard(self.model, device=self.device)

    def _exchanges(self, row: Mapping[str, Any], schema: Any) -> list[list[dict[str, str]]] | str:  # noqa: ANN401
        """A chat for each request and each answer; the status if the row has none."""
        try:
            messages = to_conversation(dict(row), self.columns, schema=schema).messages
        except EmptyConversationError:
            return "empty"
        except ConversationError:
            return "malformed"
        turns = _turns(messages)
        ends = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
        if not ends:
            return "empty"
        # An empty request stands for a row without one; it is not judged.
        return [turns[: end + i] for end in ends for i in (0, 1) if i or turns[end - 1]["content"].strip()]


def _rebuild(model: str, columns: dict[str, str] | None, device: str | None) -> GuardScorer:
    """Unpickle a guard scorer."""
    return GuardScorer(model, columns=columns, device=device)


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """User and assistant in turn, beginning with the user; messages of one role in a row are joined."""
    turns: list[dict[str, str]] = []
    for message in messages:
        if message["role"] not in ("user", "assistant") or not has_content(message):
            continue
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1]["content"] += f"\n\n{text_of(message)}"
        else:
            turns.append({"role": message["role"], "content": text_of(message)})
    missing = turns and turns[0]["role"] == "assistant"
    return [{"role": "user", "content": ""}, *turns] if missing else turns


def _cell(status: str, judged: Sequence[tuple[list[dict[str, str]], Verdict]]) -> dict[str, Any]:
    """The value of one row: the highest probability of either role, None where one of its messages has none."""
    by_role: dict[str, list[float | None]] = {"user": [], "assistant": []}
    for chat, verdict in judged:
        by_role[chat[-1]["role"]].append(verdict.unsafe)
    statuses = [verdict.status for _, verdict in judged]
    worst = next((name for name in (*UNJUDGED, "truncated") if name in statuses), status)
    return {"request": _highest(by_role["user"]), "answer": _highest(by_role["assistant"]), "status": worst}


def _highest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
