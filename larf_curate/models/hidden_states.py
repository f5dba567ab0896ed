"""Hidden states of conversations at chosen decoder blocks: the only module that runs a model for scoring.

A layer is a 0-based decoder block, and its state is that block's output, the residual stream before any final norm. The
model ends with the deepest requested layer: later blocks and the vocabulary projection are never loaded.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import with_separator
from larf_curate.conversation.templates import Tokenizer
from larf_curate.conversation.truncation import Tokens
from larf_curate.errors import ModelError, ScoringError
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.devices import default_batch_tokens
from larf_curate.models.hooks import forward_hooks
from larf_curate.models.prefix_cache import Prefix, cache_argument, group_by_prefix, run_prefix
from larf_curate.models.token_trimming import SHORTCUTS, Shortcut, trimmed_to
from larf_curate.states import Position, States

DEFAULT_MAX_LENGTH = 4096
DEFAULT_BATCH_TOKENS = 0
"""0 stands for the device's default; see `larf_curate.models.devices.default_batch_tokens`."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class StateReader:
    """Reads hidden states from a model that ends with the deepest requested layer.

    Args:
        model: The model without its head, in evaluation mode, on its device.
        tokenizer: Its tokenizer.
        layers: 0-based decoder blocks, in the order of the output.
        revision: Commit of the model, if it was loaded from the Hub.
        max_length: Longest conversation in tokens.
        batch_tokens: Most tokens per batch, padding included; 0 for the device's default. A longer conversation runs
            alone. The number is halved when the device runs out of memory.
        shortcuts: Exact optimizations to use; see `larf_curate.models.token_trimming`.
        day: Day of dates that the chat template writes; default: today.
    """

    model: nn.Module
    tokenizer: Tokenizer
    layers: tuple[int, ...]
    revision: str | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    shortcuts: frozenset[Shortcut] = SHORTCUTS
    day: date | None = None
    input_separator: str | None = None
    _warned: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.batch_tokens = self.batch_tokens or default_batch_tokens(self.device.type)

    def __call__(
        self,
        conversations: Sequence[Tokens],
        positions: Sequence[Position] = ("last",),
        on_read: Callable[[int], object] | None = None,
    ) -> States:
        """Read the states of every assistant turn.

        Args:
            conversations: n tokenized conversations with t turns in total.
            positions: Where to read.
            on_read: Called after each forward pass with the number of its conversations; equal ones count once.

        Returns:
            For each position an array of shape (t, layers, d), float32, turns in the order of the conversations. If the
            model overflows its dtype it holds infinities or NaN, which the caller must check.

        Raises:
            ScoringError: If a single conversation does not fit into memory.
        """
        read = [position for position in positions if position != "length"]
        states = self._read_unique(conversations, read, on_read or (lambda _: None))
        if "length" in positions:
            lengths = np.array([turn.end + 1 for c in conversations for turn in c.turns], np.float32)
            states["length"] = np.repeat(lengths[:, None, None], len(self.layers), axis=1)
        return states

    def renderer(self, columns: Mapping[str, str] | None = None, *, keep_texts: bool = False) -> Renderer:
        """A renderer of rows for this model: its tokenizer, longest conversation, separator and day; see `Renderer`."""
        return Renderer(self.tokenizer, self.max_length, self.columns(columns), keep_texts, self.day)

    def columns(self, columns: Mapping[str, str] | None = None) -> dict[str, str] | None:
        """Column names by role together with the input separator; see `with_separator`."""
        return with_separator(columns, self.input_separator)

    def _read_unique(
        self, conversations: Sequence[Tokens], positions: Sequence[Position], on_read: Callable[[int], object]
    ) -> States:
        """Read each distinct conversation once and copy its states to the duplicates."""
        if "dedupe" not in self.shortcuts:
            return self._read(conversations, positions, on_read)
        first: dict[Any, int] = {}  # the turns are part of the key, since they decide which tokens are read
        unique_index = [first.setdefault((tuple(c.ids), c.turns), len(first)) for c in conversations]
        if len(first) == len(conversations):
            return self._read(conversations, positions, on_read)
        unique = [conversations[index] for index in np.unique(unique_index, return_index=True)[1]]
        states = self._read(unique, positions, on_read)
        starts = np.cumsum([0, *(len(c.turns) for c in unique)])
        turns = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in unique_index])
        return {position: values[turns] for position, values in states.items()}

    @property
    def width(self) -> int:
        """Width d of the hidden states."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)  # type: ignore[union-attr, operator]

    @property
    def is_quantised(self) -> bool:
        """Whether the weights are quantised, so that states depend on what else is in the batch."""
        return hasattr(self.model.config, "quantization_config")

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @cached_property
    def _blocks(self) -> nn.ModuleList:
        """Decoder blocks, which take as long to find as a small batch takes to run."""
        return decoder_blocks(self.model)

    @torch.inference_mode()
    def _read(
        self, conversations: Sequence[Tokens], positions: Sequence[Position], on_read: Callable[[int], object]
    ) -> States:
        starts = np.cumsum([0, *(len(c.turns) for c in conversations)])
        shape = (int(starts[-1]), len(self.layers), self.width)
        states: States = {position: np.empty(shape, np.float32) for position in positions}
        for length, group in self._groups(conversations):
            members = [conversations[index] for index in group]
            for batch, read in self._batches(members, positions, self._prefix(members[0].ids[:length])):
                rows = np.concatenate([np.arange(starts[group[i]], starts[group[i] + 1]) for i in batch])
                for position, values in read.items():
                    states[position][rows] = values.numpy()
                on_read(len(batch))
        return states

    def _groups(self, conversations: Sequence[Tokens]) -> list[tuple[int, list[int]]]:
        """Indices of conversations grouped by shared prefix, each group with the length of its prefix.

        A prefix ends before the first token that is read: the states of its own tokens are not kept.
        """
        if "prefix" not in self.shortcuts or len(conversations) < 2:
            return [(0, list(range(len(conversations))))] if conversations else []
        limits = [min(turn.start for turn in c.turns) - 1 for c in conversations]
        return group_by_prefix([c.ids for c in conversations], limits)

    def _prefix(self, ids: Sequence[int]) -> Prefix:
        """Run a shared prefix; an empty one if it does not fit into memory."""
        try:
            return run_prefix(self.model, ids, self.device) if ids else Prefix()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return Prefix()

    def _batches(
        self, conversations: Sequence[Tokens], positions: Sequence[Position], prefix: Prefix
    ) -> Iterator[tuple[list[int], dict[Position, Tensor]]]:
        """Read conversations with one prefix; yields the indices of each batch and the states read from it."""
        # The prefix's keys and values take memory in every row: about a quarter of what computing it would take.
        lengths = [len(c.ids) - prefix.length + prefix.length // 4 for c in conversations]
        pending = deque(_batch_by_length(lengths, self.batch_tokens))
        while pending:
            batch = pending.popleft()
            try:
                yield batch, self._forward([conversations[i] for i in batch], positions, prefix)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_batch_tokens([lengths[i] for i in batch], error)
                # The batches that are left were made for the old budget and would not fit either.
                rest = [*batch, *chain.from_iterable(pending)]
                groups = _batch_by_length([lengths[i] for i in rest], self.batch_tokens)
                pending = deque([rest[index] for index in group] for group in groups)

    def _halve_batch_tokens(self, lengths: Sequence[int], error: Exception) -> None:
        """Set the budget to half of what the batch that did not fit took; warns once."""
        if len(lengths) == 1:
            raise ScoringError(
                "one conversation does not fit into memory: lower max_length in the profile, or use a larger device"
            ) from error
        self.batch_tokens = max(1, min(self.batch_tokens, len(lengths) * max(lengths)) // 2)
        if not self._warned:
            logger.warning("out of memory: continuing with smaller batches")
        self._warned = True

    def _forward(
        self, batch: Sequence[Tokens], positions: Sequence[Position], prefix: Prefix
    ) -> dict[Position, Tensor]:
        """Run one right-padded batch. It needs no mask: with causal attention no token attends to later padding."""
        ids = pad_sequence([torch.tensor(item.ids[prefix.length :]) for item in batch], batch_first=True)
        ids = ids.to(self.device)
        gather = _TurnGatherer(batch, prefix.length, ids.shape[1], self.device)
        found: dict[int, dict[Position, Tensor]] = {}

        def store(layer: int, output: Tensor) -> None:
            if output.shape != (*ids.shape, self.width):
                shape = tuple(output.shape)
                raise ModelError(
                    f"wanted one state per token, got shape {shape} from {type(self.model).__name__}: this "
                    "architecture is not supported, use another model"
                )
            found[layer] = {position: gather(output, position) for position in positions}

        blocks = self._blocks
        deepest = blocks[max(self.layers)]
        trimmed = trimmed_to(deepest, gather.token_indices(positions)) if "trim" in self.shortcuts else nullcontext()
        past = prefix.for_batch(len(batch))
        with _capture(blocks, self.layers, store), trimmed, suppress(_DeepestReached):
            self.model(input_ids=ids, use_cache=past is not None, **cache_argument(self.model, past))
        return {p: torch.stack([found[layer][p] for layer in self.layers], dim=1).cpu() for p in positions}


class _TurnGatherer:
    """Gathers the positions of every turn of one padded batch from a block's output.

    All indices are flat, into (rows, length), where the tokens of the shared prefix are not part of the rows.

    Args:
        batch: The conversations.
        prefix_length: Number of tokens of the shared prefix.
        length: Length of the padded batch, without the prefix.
        device: Device of the block's output.
    """

    def __init__(self, batch: Sequence[Tokens], prefix_length: int, length: int, device: torch.device) -> None:
        turns = [(row * length - prefix_length, turn) for row, item in enumerate(batch) for turn in item.turns]
        prompt_ends = [max(turn.start - 1, 0) for _, turn in turns]  # 0: text without a prompt, replaced by the caller
        self._last = torch.tensor([offset + turn.end for offset, turn in turns], device=device)
        self._prompt = torch.tensor(
            [turn[0] + prompt_end for turn, prompt_end in zip(turns, prompt_ends, strict=True)], device=device
        )
        counts = torch.tensor([turn.end - turn.start + 1 for _, turn in turns], device=device)
        # All tokens of all answers, one after the other: ``_turn`` is the turn that each of them belongs to.
        self._turn = torch.repeat_interleave(counts)
        starts = torch.tensor([offset + turn.start for offset, turn in turns], device=device)
        within = torch.arange(len(self._turn), device=device) - (counts.cumsum(0) - counts)[self._turn]
        self._tokens = starts[self._turn] + within
        self._counts = counts.unsqueeze(1)

    def token_indices(self, positions: Sequence[Position]) -> Tensor:
        """Flat indices of all tokens that these positions read, without duplicates."""
        indices: dict[Position, Tensor] = {"last": self._last, "prompt": self._prompt, "mean": self._tokens}
        tokens: Tensor = torch.unique(torch.cat([indices[position] for position in positions]))
        return tokens

    def __call__(self, output: Tensor, position: Position) -> Tensor:
        """States of shape (turns, d), float32, from an output of shape (rows, length, d)."""
        flat = output.flatten(0, 1)
        if position == "last":
            return flat[self._last].float()
        if position == "prompt":
            return flat[self._prompt].float()
        # Sums over long answers in half precision would lose small components.
        total = torch.zeros(len(self._counts), flat.shape[1], device=flat.device)
        return total.index_add_(0, self._turn, flat[self._tokens].float()) / self._counts


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out; for the CPU, torch has no error class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


class _DeepestReached(Exception):  # noqa: N818  not an error
    """Ends a forward pass early: nothing after the deepest layer is needed."""


@contextmanager
def _capture(blocks: nn.ModuleList, layers: Sequence[int], store: Any) -> Iterator[None]:  # noqa: ANN401
    """Pass the outputs of the requested blocks to ``store`` and stop the forward pass after the deepest one."""
    deepest = max(layers)

    def capture(layer: int, _module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401
        store(layer, output if isinstance(output, Tensor) else output[0])
        if layer == deepest:
            raise _DeepestReached  # a hook can end the forward pass of an unknown model only by an exception

    with forward_hooks((blocks[layer], partial(capture, layer)) for layer in set(layers)):
        yield


def _batch_by_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Batch rows of similar length, longest first, so that rows times longest stays within the budget.

    Ties keep their order, so that the same rows always form the same batches: in bf16, states depend on them.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
