"""Forward passes that start at a block: the outputs of earlier blocks are recorded once and replayed.

A scaled block changes nothing before it, and a prefix that all texts share needs computing once per pass instead of
once per text. Both optimizations are exact: up to rounding, the results equal complete passes over each text.
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

from larf_curate.layers.logits import logits_at
from larf_curate.layers.subject import Subject
from larf_curate.models.hooks import forward_hooks
from larf_curate.models.prefix_cache import cache_argument

BATCH_TOKENS = 1024
MAX_NEW_TOKENS = 64
"""Most tokens that are decoded after a text."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Texts of similar length without their shared prefix, left-padded.

    Args:
        rows: Indices of the texts.
        ids: Token ids after the prefix, shape (n, t).
        mask: 1 for tokens and 0 for padding, the prefix included, shape (n, prefix + t).
        positions: Position of each token in its text, shape (n, t).
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor
    positions: Tensor


@dataclass(frozen=True, eq=False)
class Pass:
    """Result of a forward pass over one batch.

    Args:
        batch: The texts.
        logits: Logits at the last positions, shape (n, keep, vocabulary); zeros where fewer of a text are computed.
        cache: Keys and values of all blocks, the shared prefix included.
    """

    batch: Batch
    logits: Tensor
    cache: DynamicCache


@dataclass(eq=False)
class _Record:
    """Outputs, keys and values of every block on one batch, with nothing scaled."""

    outputs: list[Any] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)


class Replay:
    """Runs a model over the same texts repeatedly, starting at any block.

    Args:
        subject: The model.
        texts: Token ids of the texts.
        keep: Number of positions at the end of each text whose logits are computed: one number, or one for each text.
        batch_tokens: Most tokens per batch, padding included.
    """

    def __init__(
        self,
        subject: Subject,
        texts: Sequence[list[int]],
        *,
        keep: int | Sequence[int] = 1,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self.subject = subject
        self.texts = [list(text) for text in texts]
        self._keep = [keep] * len(texts) if isinstance(keep, int) else list(keep)
        # Left padding between prefix and text needs explicit positions, and must not use up a sliding window.
        allows_gaps = _takes_position_ids(subject) and _sliding_window(subject) >= max(map(len, texts)) + MAX_NEW_TOKENS
        self.prefix = _common_prefix(texts, max(self._keep)) if allows_gaps else []
        self.batches = list(batched(texts, self.prefix, batch_tokens, subject.device))
        self._needs_early_blocks = _shares_keys(subject)
        self._prefix_record = _Record()
        self._records: list[_Record] = []

    @torch.no_grad()
    def __call__(self, block: int | None = None) -> Iterator[Pass]:
        """Run all texts, one batch after the other.

        Args:
            block: The first block whose weights differ from those of the recorded run; earlier blocks are replayed.
                None to run all blocks with unchanged weights and record their outputs: do this once, to the end, before
                any other run.
        """
        if block is None:
            self._prefix_record, self._records = _Record(), [_Record() for _ in self.batches]
        elif self._needs_early_blocks:
            block = 0
        prefix_cache = self._run_prefix(block)
        for batch, record in zip(self.batches, self._records, strict=True):
            cache = _expand_cache(prefix_cache, len(batch.rows))
            yield Pass(batch, self._run(batch, cache, record, block), cache)

    def _run_prefix(self, block: int | None) -> DynamicCache | None:
        """Keys and values of the shared prefix; None if there is none."""
        if not self.prefix:
            return None
        ids = torch.tensor([self.prefix], device=self.subject.device)
        positions = torch.arange(len(self.prefix), device=ids.device).unsqueeze(0)
        cache = DynamicCache()
        self._run(Batch([0], ids, torch.ones_like(ids), positions), cache, self._prefix_record, block)
        return cache

    def _run(self, batch: Batch, cache: DynamicCache, record: _Record, block: int | None) -> Tensor:
        blocks = self.subject.blocks
        ends = (torch.arange(1, len(batch.rows) + 1) * batch.ids.shape[1]).tolist()
        kept = [min(self._keep[row], batch.ids.shape[1]) for row in batch.rows]  # fewer of the prefix
        indices = [
            torch.arange(end - count, end, device=batch.ids.device) for end, count in zip(ends, kept, strict=True)
        ]
        with _recorded(blocks, record) if block is None else _replayed(blocks, record, block, cache):
            logits = logits_at(
                self.subject.model,
                torch.cat(indices),
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                use_cache=True,
                **cache_argument(self.subject.model, cache),
            )
        if block is None:
            length = batch.ids.shape[1]  # the prefix's keys and values are in a record of their own
            record.keys = [layer.keys[:, :, -length:] for layer in cache.layers]
            record.values = [layer.values[:, :, -length:] for layer in cache.layers]
        return _left_filled(torch.split(logits, kept))


def _sliding_window(subject: Subject) -> float:
    """Width of sliding-window attention, in which padding inside a text counts; infinite if there is none."""
    config = subject.model.config.get_text_config(decoder=True)
    return getattr(config, "sliding_window", None) or float("inf")


def _shares_keys(subject: Subject) -> bool:
    """Whether late blocks reuse keys and values of earlier ones, which therefore cannot be replayed."""
    return bool(getattr(subject.model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0))


def _takes_position_ids(subject: Subject) -> bool:
    """Whether the model accepts explicit position ids, so that padding inside a text does not shift positions."""
    return "position_ids" in inspect.signature(subject.model.forward).parameters


def _left_filled(rows: Sequence[Tensor]) -> Tensor:
    """Stack matrices of different heights into one of shape (n, highest, width), with zeros above."""
    highest = max(map(len, rows))
    return torch.stack([row if len(row) == highest else pad(row, (0, 0, highest - len(row), 0)) for row in rows])


def last_logits(model: nn.Module, count: int) -> dict[str, int]:
    """Keyword argument that restricts a model's logits to the last positions; empty if it has none."""
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def batched(texts: Sequence[list[int]], prefix: list[int], budget: int, device: torch.device) -> Iterator[Batch]:
    """Group texts of similar length, without their shared prefix, into left-padded batches.

    Args:
        texts: Token ids, each longer than ``prefix``.
        prefix: Token ids that all texts begin with.
        budget: Most tokens per batch, padding included; a longer text is a batch of its own.
        device: Device of the tensors.
    """
    start = len(prefix)
    rows: list[int] = []
    # Longest first: the first text of a batch then determines its padded length.
    for index in sorted(range(len(texts)), key=lambda i: -len(texts[i])):
        if rows and (len(rows) + 1) * (len(texts[rows[0]]) - start) > budget:
            yield _batch(texts, rows, start, device)
            rows = []
        rows.append(index)
    yield _batch(texts, rows, start, device)


def _batch(texts: Sequence[list[int]], rows: list[int], start: int, device: torch.device) -> Batch:
    remainders = [torch.tensor(texts[row][start:]) for row in rows]
    positions = [torch.arange(start, start + len(ids)) for ids in remainders]
    mask = pad(left_padded([torch.ones_like(ids) for ids in remainders]), (start, 0), value=1)
    return Batch(rows, left_padded(remainders).to(device), mask.to(device), left_padded(positions).to(device))


def left_padded(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """Stack rows of token ids into a left-padded batch of shape (n, longest)."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side="left")


def _common_prefix(texts: Sequence[list[int]], keep: int) -> list[int]:
    """The longest prefix of all texts that excludes the positions whose logits are needed."""
    limit = min(len(text) for text in texts) - keep
    return list(commonprefix(list(texts)))[: max(limit, 0)]


def _expand_cache(prefix_cache: DynamicCache | None, count: int) -> DynamicCache:
    """Copy the keys and values of one row for a batch of ``count`` rows, which adds its own."""
    cache = DynamicCache()
    for index, layer in enumerate(prefix_cache.layers if prefix_cache is not None else []):
        cache.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), index)
    return cache


@contextmanager
def _recorded(blocks: nn.ModuleList, record: _Record) -> Iterator[None]:
    """Append the output of every block to the record."""

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        record.outputs.append(output)

    with forward_hooks((block, keep) for block in blocks):
        yield


@contextmanager
def _replayed(blocks: nn.ModuleList, record: _Record, block: int, cache: DynamicCache) -> Iterator[None]:
    """Let the blocks before ``block`` return their recorded outputs instead of running."""
    replaced = list(blocks)[:block]
    originals = [module.__dict__.get("forward") for module in replaced]  # set on the instance by some wrappers

    def replay(index: int) -> Any:  # noqa: ANN401
        def forward(*_args: object, **_options: object) -> Any:  # noqa: ANN401
            cache.update(record.keys[index], record.values[index], index)
            return record.outputs[index]

        return forward

    try:
        for index, module in enumerate(replaced):
            module.forward = replay(index)
        yield
    finally:
        for module, original in zip(replaced, originals, strict=True):
            module.__dict__.pop("forward", None)
            if original is not None:
                module.forward = original
