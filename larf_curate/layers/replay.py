"""Forward passes that begin at a block: what lies below it is computed once and replayed.

A block that is scaled changes nothing below it, and the tokens that all texts begin with need computing once a pass
instead of once a text. Both are exact: the same numbers up to rounding as whole passes, text by text.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from larf_curate.layers.subject import Subject
from larf_curate.models.hooks import forward_hooks
from larf_curate.models.prefix_cache import cache_argument

BATCH_TOKENS = 1024
ROOM = 64
"""Tokens that may be decoded behind a text."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts of like length behind the shared beginning, padded on the left.

    Args:
        rows: Which texts these are.
        ids: Token ids, shape (n, t).
        mask: 1 for tokens and 0 for padding, the shared beginning included, shape (n, shared + t).
        positions: Position of each token in its text, shape (n, t).
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """What a forward pass over one batch gave.

    Args:
        batch: The texts.
        logits: Logits at the last positions, shape (n, kept, vocabulary).
        cache: Keys and values of all blocks, shared beginning included.
    """

    batch: Batch
    logits: Tensor
    cache: DynamicCache


@dataclass(eq=False)
class _Record:
    """Outputs, keys and values of every block on one batch, nothing scaled."""

    outputs: list[Any] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Replay:
    """Runs a model over fixed texts again and again, from a block on.

    Args:
        subject: The model.
        texts: Token ids of the texts.
        keep: How many last positions of each text to give logits for.
        batch_tokens: Most tokens of one batch, padding included.
    """

    def __init__(
        self, subject: Subject, texts: Sequence[list[int]], *, keep: int = 1, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        self.subject = subject
        self.texts = [list(text) for text in texts]
        gaps = _takes_positions(subject) and _window(subject) >= max(map(len, texts)) + ROOM
        self.shared = _shared(texts, keep) if gaps else []
        self.batches = list(batched(texts, self.shared, batch_tokens, subject.device))
        self._keep = keep
        self._entangled = _shares_keys(subject)
        self._beginning = _Record()
        self._records: list[_Record] = []

    @torch.no_grad()
    def __call__(self, block: int | None = None) -> Iterator[Pass]:
        """Run all texts, one batch after the other.

        Args:
            block: The lowest block whose weights differ from those of the last whole run; what is below it is replayed.
                None to run all blocks, with the weights as they should be, and to record what they give: do this once
                to the end before any other run.
        """
        if block is None:
            self._beginning, self._records = _Record(), [_Record() for _ in self.batches]
        elif self._entangled:
            block = 0
        beginning = self._begin(block)
        for batch, record in zip(self.batches, self._records, strict=True):
            cache = _repeated(beginning, len(batch.rows))
            yield Pass(batch, self._run(batch, cache, record, block), cache)

    def _begin(self, block: int | None) -> DynamicCache | None:
        """Keys and values of the shared beginning."""
        if not self.shared:
            return None
        ids = torch.tensor([self.shared], device=self.subject.device)
        positions = torch.arange(len(self.shared), device=ids.device).unsqueeze(0)
        cache = DynamicCache()
        self._run(Batch([0], ids, torch.ones_like(ids), positions), cache, self._beginning, block)
        return cache

    def _run(self, batch: Batch, cache: DynamicCache, record: _Record, block: int | None) -> Tensor:
        blocks = self.subject.blocks
        with _recorded(blocks, record) if block is None else _replayed(blocks, record, block, cache):
            output = self.subject.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=True,
                **cache_argument(self.subject.model, cache),
                **last_logits(self.subject.model, self._keep),
            )
        if block is None:
            own = batch.ids.shape[1]
            record.keys = [layer.keys[:, :, -own:] for layer in cache.layers]
            record.values = [layer.values[:, :, -own:] for layer in cache.layers]
        logits: Tensor = output.logits[:, -self._keep :]
        return logits


def _window(subject: Subject) -> float:
    """Width of sliding attention, which counts padding in the middle of a text; infinite if there is none."""
    config = subject.model.config.get_text_config(decoder=True)
    return getattr(config, "sliding_window", None) or float("inf")


def _shares_keys(subject: Subject) -> bool:
    """Whether late blocks take their keys and values from earlier ones, which then must run."""
    return bool(getattr(subject.model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0))


def _takes_positions(subject: Subject) -> bool:
    """Whether the model is told each token's position, so that it may ignore padding in the middle of a text."""
    return "position_ids" in inspect.signature(subject.model.forward).parameters


def last_logits(model: nn.Module, count: int) -> dict[str, int]:
    """The option that makes a model compute logits at its last positions only, if it has one."""
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def batched(texts: Sequence[list[int]], shared: list[int], budget: int, device: torch.device) -> Iterator[Batch]:
    """Group texts of like length, without their shared beginning, into left-padded batches.

    Args:
        texts: Token ids, each longer than ``shared``.
        shared: What all begin with.
        budget: Most tokens of one batch, padding included; a longer text is a batch of its own.
        device: Where the tensors go.
    """
    start = len(shared)
    rows: list[int] = []
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if rows and (len(rows) + 1) * (len(texts[rows[0]]) - start) > budget:
            yield _batch(texts, rows, start, device)
            rows = []
        rows.append(index)
    yield _batch(texts, rows, start, device)


def _batch(texts: Sequence[list[int]], rows: list[int], start: int, device: torch.device) -> Batch:
    own = [torch.tensor(texts[row][start:]) for row in rows]
    positions = [torch.arange(start, start + len(ids)) for ids in own]
    mask = pad(left_padded([torch.ones_like(ids) for ids in own]), (start, 0), value=1)
    return Batch(rows, left_padded(own).to(device), mask.to(device), left_padded(positions).to(device))


def left_padded(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """Rows of tokens as one batch of shape (n, longest), padded on the left."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")


def _shared(texts: Sequence[list[int]], keep: int) -> list[int]:
    """The longest beginning of all texts that leaves each the positions whose logits are wanted."""
    room = min(len(text) for text in texts) - keep
    return list(commonprefix(list(texts)))[: max(room, 0)]


def _repeated(beginning: DynamicCache | None, count: int) -> DynamicCache:
    cache = DynamicCache()
    for index, layer in enumerate(beginning.layers if beginning is not None else []):
        cache.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), index)
    return cache


@contextmanager
def _recorded(blocks: nn.ModuleList, record: _Record) -> Iterator[None]:
    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        record.outputs.append(output)

    with forward_hooks((block, keep) for block in blocks):
        yield


@contextmanager
def _replayed(blocks: nn.ModuleList, record: _Record, block: int, cache: DynamicCache) -> Iterator[None]:
    """Replace the blocks below ``block`` by what they gave when recorded."""
    below = list(blocks)[:block]
    before = [module.__dict__.get("forward") for module in below]

    def replay(index: int) -> Any:  # noqa: ANN401
        def forward(*_args: object, **_options: object) -> Any:  # noqa: ANN401
            cache.update(record.keys[index], record.values[index], index)
            return record.outputs[index]

        return forward

    try:
        for index, module in enumerate(below):
            module.forward = replay(index)
        yield
    finally:
        for module, old in zip(below, before, strict=True):
            module.__dict__.pop("forward", None)
            if old is not None:
                module.forward = old
