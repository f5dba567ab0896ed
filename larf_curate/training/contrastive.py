"""Contrastive rows of SAP: a harmful prompt with a compliant and a refusing answer, tokenized and batched."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence

from larf_curate.conversation.chat_template import Rendered, Renderer
from larf_curate.conversation.schemas import Row
from larf_curate.conversation.templates import Tokenizer
from larf_curate.conversation.training_rows import IGNORED, UNLIMITED
from larf_curate.data.references import ReferenceSet
from larf_curate.errors import InputError, ReferenceSetError

References: TypeAlias = ReferenceSet | Dataset | str | Path | Iterable[tuple[str, str, str]]
"""A reference set, a name for `ReferenceSet.load`, a dataset with columns prompt, unsafe and safe, or such triples."""

Sides: TypeAlias = tuple[list[Row], list[Row]]
"""Unsafe and safe conversations, paired by index."""

Batch: TypeAlias = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ContrastiveAnswer:
    """One side of a contrastive row: the prompt with one of its two answers.

    Args:
        ids: Token ids of prompt and answer.
        start: Position of the answer's first token; the answer extends to the end, including its end-of-turn token.
    """

    ids: list[int]
    start: int


@dataclass(frozen=True, kw_only=True)
class ContrastiveRows:
    """Tokenized contrastive rows, served as batches by index.

    Args:
        safe: The refusals.
        unsafe: The compliant answers to the same prompts, in the same order.
        pad_token_id: Padding token.
        seed: Seed of the shuffling.
    """

    safe: tuple[ContrastiveAnswer, ...]
    unsafe: tuple[ContrastiveAnswer, ...]
    pad_token_id: int
    seed: int

    @classmethod
    def build(cls, sides: Sides, tokenizer: Tokenizer, *, max_length: int, seed: int) -> "ContrastiveRows":
        """Tokenize both sides with the model's chat template; answers are truncated to ``max_length``.

        Args:
            sides: Unsafe and safe conversations, paired by index.
            tokenizer: The model's tokenizer, with a chat template.
            max_length: Longest prompt with answer in tokens.
            seed: Seed of the shuffling.

        Raises:
            ReferenceSetError: If a row has no answer on one side, or its two answers belong to different prompts.
            InputError: If a prompt alone reaches ``max_length``.
        """
        unsafe, safe = sides
        render = Renderer(tokenizer, max_length=UNLIMITED)
        answers = {
            side: tuple(_answer(item, index, side, max_length) for index, item in enumerate(render(rows)))
            for side, rows in (("safe", safe), ("unsafe", unsafe))
        }
        # The margin compares two answers to one prompt: after different prompts it would mean nothing.
        for index, (one, other) in enumerate(zip(answers["safe"], answers["unsafe"], strict=True)):
            if one.ids[: one.start] != other.ids[: other.start]:
                raise ReferenceSetError(
                    f"contrastive row {index}: the safe and the unsafe answer belong to different prompts: "
                    "give pairs (columns prompt, unsafe, safe)"
                )
        pad = getattr(tokenizer, "pad_token_id", None)
        return cls(**answers, pad_token_id=0 if pad is None else pad, seed=seed)

    @property
    def longest(self) -> int:
        """Length of the longest prompt with an answer, in tokens."""
        return max(len(answer.ids) for answer in (*self.safe, *self.unsafe))

    def batch(self, index: int, size: int) -> list[int]:
        """Row numbers of the batch with a given index in an endless sequence of passes, reshuffled for each pass.

        It depends only on the seed, the index and the size, so a resumed run continues with the same batches.

        Args:
            index: Index of the batch, from 0.
            size: Number of rows.
        """
        return [self._row(position) for position in range(index * size, (index + 1) * size)]

    def by_length(self, rows: Sequence[int], tokens: int) -> list[list[int]]:
        """Split rows into parts, the longest first, so that little is padded.

        Args:
            rows: Row numbers.
            tokens: Number of tokens of a part with its padding, as `pairs` has them; a longer row has its own.
        """
        parts: list[list[int]] = []
        for row in sorted(rows, key=self._length, reverse=True):
            if parts and (len(parts[-1]) + 1) * self._length(parts[-1][0]) <= tokens:
                parts[-1].append(row)
            else:
                parts.append([row])
        return parts

    def sides(self, rows: Sequence[int]) -> tuple[Batch, Batch]:
        """The safe and the unsafe side of rows.

        Each has ``input_ids``, ``attention_mask`` and ``labels`` of shape (rows, length), right-padded, with labels on
        the answers only.
        """
        return self._pad([self.safe[row] for row in rows]), self._pad([self.unsafe[row] for row in rows])

    def pairs(self, rows: Sequence[int]) -> Batch:
        """Each row as one sequence, in which both answers follow the same prompt without seeing each other.

        A sequence is the prompt, the safe answer, the prompt's last token again and the unsafe answer. Its last part
        has the positions that it would have without the safe answer, and does not attend to that.

        Returns:
            ``input_ids``, ``position_ids`` and ``labels`` of shape (rows, length), right-padded; ``attention_mask`` of
            shape (rows, 1, length, length), True where a token attends to another; and ``sides`` of shape
            (rows, length), 1 for tokens of safe answers, -1 for those of unsafe ones, otherwise 0.
        """
        pairs = [_pair(self.safe[row], self.unsafe[row]) for row in rows]
        width = max(len(pair["input_ids"]) for pair in pairs)
        fill = {"input_ids": self.pad_token_id, "position_ids": 0, "labels": IGNORED, "sides": 0}
        batch = {
            name: pad_sequence([pair[name] for pair in pairs], batch_first=True, padding_value=value)
            for name, value in fill.items()
        }
        # Padding attends to itself: a softmax over nothing would be NaN.
        masks = torch.eye(width, dtype=torch.bool).repeat(len(pairs), 1, 1)
        for mask, pair in zip(masks, pairs, strict=True):
            length = len(pair["input_ids"])
            mask[:length, :length] = pair["attention_mask"]
        return {**batch, "attention_mask": masks[:, None]}

    def _length(self, row: int) -> int:
        """Tokens of a row in `pairs`."""
        return len(self.safe[row].ids) + 1 + len(self.unsafe[row].ids) - self.unsafe[row].start

    def _row(self, position: int) -> int:
        """Index of the row at a position of the endless sequence."""
        passes, offset = divmod(position, len(self.safe))
        generator = torch.Generator().manual_seed(self.seed + passes)
        return int(torch.randperm(len(self.safe), generator=generator)[offset])

    def _pad(self, answers: Sequence[ContrastiveAnswer]) -> Batch:
        ids = [torch.tensor(answer.ids) for answer in answers]
        labels = [
            row.masked_fill(torch.arange(len(row)) < a.start, IGNORED) for row, a in zip(ids, answers, strict=True)
        ]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }


def _pair(safe: ContrastiveAnswer, unsafe: ContrastiveAnswer) -> Batch:
    """One sequence of `ContrastiveRows.pairs`, without padding; its mask has shape (length, length)."""
    start, end = safe.start, len(safe.ids)
    first, second = safe.ids[start:], unsafe.ids[start:]
    again = safe.ids[start - 1]
    length = end + 1 + len(second)
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    mask[end:, start - 1 : end] = False
    return {
        "input_ids": torch.tensor([*safe.ids, again, *second]),
        "position_ids": torch.tensor([*range(end), *range(start - 1, start + len(second))]),
        "labels": torch.tensor([*[IGNORED] * start, *first, IGNORED, *second]),
        "sides": torch.tensor([*[0] * start, *[1] * len(first), 0, *[-1] * len(second)]),
        "attention_mask": mask,
    }


def reusable(references: References) -> References:
    """References that can be read several times: those of an iterator as a list."""
    return list(references) if isinstance(references, Iterator) else references


def paired_sides(references: References) -> Sides:
    """The unsafe and the safe conversations of references, paired by index.

    Raises:
        ReferenceSetError: If there are none, not equally many on both sides, or something else than triples.
    """
    if isinstance(references, str | Path):
        references = ReferenceSet.load(references)
    if isinstance(references, ReferenceSet):
        if not references.same_size:
            raise ReferenceSetError(
                f"wanted pairs, got {len(references.unsafe)} unsafe and {len(references.safe)} safe references: "
                "give a set with the columns prompt, unsafe, safe"
            )
        return list(references.unsafe), list(references.safe)
    if isinstance(references, Dataset):
        names = ("prompt", "unsafe", "safe")
        if missing := [name for name in names if name not in references.column_names]:
            raise ReferenceSetError(
                f"contrastive rows have no column {', '.join(missing)}, only {', '.join(references.column_names)}: "
                "wanted prompt, unsafe and safe"
            )
        references = [(row["prompt"], row["unsafe"], row["safe"]) for row in references]
    triples = list(references)
    if not triples:
        raise ReferenceSetError("wanted contrastive rows, got none: give at least one triple of prompt, unsafe, safe")
    for index, row in enumerate(triples):
        if not isinstance(row, tuple | list) or len(row) != 3:
            raise ReferenceSetError(
                f"contrastive row {index}: wanted a triple of prompt, unsafe and safe, got {_kind(row)}: give triples, "
                "a Dataset with these columns, or the name of a file"
            )
    return [_conversation(t[0], t[1]) for t in triples], [_conversation(t[0], t[2]) for t in triples]


def sides_digest(sides: Sides) -> str:
    """Hex SHA-256 of contrastive rows."""
    return hashlib.sha256(json.dumps(sides, sort_keys=True, default=str).encode()).hexdigest()


def _kind(row: object) -> str:
    """A row in words, without its texts."""
    return f"{type(row).__name__} of {len(row)}" if isinstance(row, Sized) else type(row).__name__


def _conversation(prompt: object, answer: object) -> dict[str, object]:
    return {"prompt": prompt, "response": answer}


def _answer(item: Rendered, index: int, side: str, max_length: int) -> ContrastiveAnswer:
    if item.tokens is None:
        raise ReferenceSetError(
            f"contrastive row {index} has no {side} answer ({item.reason}): fill it or drop the row"
        )
    turn = item.tokens.turns[-1]
    if turn.start >= max_length:
        raise InputError(
            f"contrastive row {index}: the prompt has {turn.start} tokens and leaves no room for an answer "
            f"within contrastive_max_length={max_length}: raise it or drop the row"
        )
    return ContrastiveAnswer(item.tokens.ids[: min(turn.end + 1, max_length)], turn.start)
