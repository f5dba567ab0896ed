"""Hidden states of conversations at chosen decoder blocks: the only module that runs a model for scoring.

A layer is a 0-based decoder block and its state is that block's output, the residual stream before any final norm. The
model is cut off after the deepest layer asked for: later blocks and the vocabulary projection are never loaded.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from larf_curate.conversation.chat_template import Tokenizer, Tokens
from larf_curate.errors import ModelError, ScoringError
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.devices import suited_tokens
from larf_curate.models.hooks import forward_hooks
from larf_curate.models.prefix_cache import Prefix, cache_argument, grouped, run_prefix
from larf_curate.models.token_trimming import SHORTCUTS, Shortcut, only_at
from larf_curate.states import Position, States

DEFAULT_MAX_LENGTH = 4096
DEFAULT_BATCH_TOKENS = 0
"""As many as suit the device."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True, eq=False)
class StateReader:
    """Reads hidden states from a model that ends with the deepest layer asked for.

    Args:
        model: The model without its head, in evaluation mode, on its device.
        tokenizer: Its tokenizer.
        layers: 0-based decoder blocks, in the order wanted.
        revision: The commit the model came from, if it came from the Hub.
        max_length: Longest conversation in tokens.
        batch_tokens: Most tokens of one batch, padding included, 0 for what suits the device; a longer conversation
            runs alone. Halved when the device runs out of memory.
        shortcuts: Work to leave out; see `larf_curate.models.token_trimming`.
    """

    model: nn.Module
    tokenizer: Tokenizer
    layers: tuple[int, ...]
    revision: str | None = None
    max_length: int = DEFAULT_MAX_LENGTH
    batch_tokens: int = DEFAULT_BATCH_TOKENS
    shortcuts: frozenset[Shortcut] = SHORTCUTS
    _halved: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.batch_tokens = self.batch_tokens or suited_tokens(self.device.type)

    def __call__(self, conversations: Sequence[Tokens], positions: Sequence[Position] = ("last",)) -> States:
        """Read the states of every assistant turn.

        Args:
            conversations: n tokenized conversations with t turns in all.
            positions: Where to read.

        Returns:
            For each position an array of shape (t, number of layers, d), float32, turns in the order of the
            conversations. A model that overflows its dtype gives infinities or NaN there, which the caller checks.

        Raises:
            ScoringError: If a single conversation does not fit into memory.
        """
        wanted = [position for position in positions if position != "length"]
        states = self._read_unique(conversations, wanted)
        if "length" in positions:
            lengths = np.array([turn.end + 1 for c in conversations for turn in c.turns], np.float32)
            states["length"] = np.repeat(lengths[:, None, None], len(self.layers), axis=1)
        return states

    def _read_unique(self, conversations: Sequence[Tokens], positions: Sequence[Position]) -> States:
        """Read each conversation once."""
        if "dedupe" not in self.shortcuts:
            return self._read(conversations, positions)
        first: dict[Any, int] = {}
        places = [first.setdefault((tuple(c.ids), c.turns), len(first)) for c in conversations]
        if len(first) == len(conversations):
            return self._read(conversations, positions)
        unique = [conversations[index] for index in np.unique(places, return_index=True)[1]]
        states = self._read(unique, positions)
        starts = np.cumsum([0, *(len(c.turns) for c in unique)])
        turns = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in places])
        return {position: values[turns] for position, values in states.items()}

    @property
    def width(self) -> int:
        """Width d of the hidden states."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)  # type: ignore[union-attr, operator]

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def _read(self, conversations: Sequence[Tokens], positions: Sequence[Position]) -> States:
        starts = np.cumsum([0, *(len(c.turns) for c in conversations)])
        shape = (int(starts[-1]), len(self.layers), self.width)
        states: States = {position: np.empty(shape, np.float32) for position in positions}
        for length, group in self._groups(conversations):
            members = [conversations[place] for place in group]
            for batch, read in self._batches(members, positions, self._prefix(members[0].ids[:length])):
                rows = np.concatenate([np.arange(starts[group[i]], starts[group[i] + 1]) for i in batch])
                for position, values in read.items():
                    states[position][rows] = values.numpy()
        return states

    def _groups(self, conversations: Sequence[Tokens]) -> list[tuple[int, list[int]]]:
        """Conversations by the length of the beginning they share with others, which no turn is read in."""
        if "prefix" not in self.shortcuts or len(conversations) < 2:
            return [(0, list(range(len(conversations))))] if conversations else []
        limits = [min(turn.start for turn in c.turns) - 1 for c in conversations]
        return grouped([c.ids for c in conversations], limits)

    def _prefix(self, ids: Sequence[int]) -> Prefix:
        """A common beginning, run; none where it does not fit into memory."""
        try:
            return run_prefix(self.model, ids, self.device) if ids else Prefix()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return Prefix()

    def _batches(
        self, conversations: Sequence[Tokens], positions: Sequence[Position], prefix: Prefix
    ) -> Iterator[tuple[list[int], dict[Position, Tensor]]]:
        """Read conversations that begin alike; yields the places of every batch and what was read there."""
        # Keys and values of the beginning take room in every row: about a quarter of what computing it would.
        lengths = [len(c.ids) - prefix.length + prefix.length // 4 for c in conversations]
        todo = deque(_batches(lengths, self.batch_tokens))
        while todo:
            batch = todo.popleft()
            try:
                yield batch, self._forward([conversations[i] for i in batch], positions, prefix)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                self._halve([lengths[i] for i in batch], error)
                rest = [*batch, *chain.from_iterable(todo)]
                groups = _batches([lengths[i] for i in rest], self.batch_tokens)
                todo = deque([rest[place] for place in group] for group in groups)

    def _halve(self, lengths: Sequence[int], error: Exception) -> None:
        """Halve the budget below what a batch that did not fit has taken; said once."""
        if len(lengths) == 1:
            raise ScoringError(
                "one conversation does not fit into memory: lower max_length in the profile, or use a larger device"
            ) from error
        self.batch_tokens = max(1, min(self.batch_tokens, len(lengths) * max(lengths)) // 2)
        if not self._halved:
            logger.warning("out of memory: going on with smaller batches")
        self._halved = True

    def _forward(
        self, batch: Sequence[Tokens], positions: Sequence[Position], prefix: Prefix
    ) -> dict[Position, Tensor]:
        """One right-padded batch. No mask: with causal attention no token sees the padding behind it."""
        ids = pad_sequence([torch.tensor(item.ids[prefix.length :]) for item in batch], batch_first=True)
        ids = ids.to(self.device)
        gather = _Gather(batch, prefix.length, ids.shape[1], self.device)
        found: dict[int, dict[Position, Tensor]] = {}

        def keep(layer: int, output: Tensor) -> None:
            if output.shape != (*ids.shape, self.width):
                shape = tuple(output.shape)
                raise ModelError(f"wanted one state a token, got shape {shape} from {type(self.model).__name__}")
            found[layer] = {position: gather(output, position) for position in positions}

        blocks = decoder_blocks(self.model)
        deepest = blocks[max(self.layers)]
        trimmed = only_at(deepest, gather.read(positions)) if "trim" in self.shortcuts else nullcontext()
        past = prefix.repeated(len(batch))
        with _watch(blocks, self.layers, keep), trimmed, suppress(_DeepestReached):
            self.model(input_ids=ids, use_cache=past is not None, **cache_argument(self.model, past))
        return {p: torch.stack([found[layer][p] for layer in self.layers], dim=1).cpu() for p in positions}


class _Gather:
    """Picks the positions of every turn of one padded batch, less its common beginning, out of a block's output."""

    def __init__(self, batch: Sequence[Tokens], skipped: int, length: int, device: torch.device) -> None:
        turns = [(row * length - skipped, turn) for row, item in enumerate(batch) for turn in item.turns]
        first = [max(turn.start - 1, 0) for _, turn in turns]
        self._end = torch.tensor([offset + turn.end for offset, turn in turns], device=device)
        self._before = torch.tensor(
            [turn[0] + before for turn, before in zip(turns, first, strict=True)], device=device
        )
        counts = torch.tensor([turn.end - turn.start + 1 for _, turn in turns], device=device)
        self._turn = torch.repeat_interleave(counts)
        firsts = torch.tensor([offset + turn.start for offset, turn in turns], device=device)
        within = torch.arange(len(self._turn), device=device) - (counts.cumsum(0) - counts)[self._turn]
        self._tokens = firsts[self._turn] + within
        self._counts = counts.unsqueeze(1)

    def read(self, positions: Sequence[Position]) -> Tensor:
        """Flat indices of all tokens that these positions read, each once."""
        places: dict[Position, Tensor] = {"last": self._end, "prompt": self._before, "mean": self._tokens}
        tokens: Tensor = torch.unique(torch.cat([places[position] for position in positions]))
        return tokens

    def __call__(self, output: Tensor, position: Position) -> Tensor:
        """States of shape (turns, d), float32, from an output of shape (rows, length, d)."""
        flat = output.flatten(0, 1)
        if position == "last":
            return flat[self._end].float()
        if position == "prompt":
            return flat[self._before].float()
        total = torch.zeros(len(self._counts), flat.shape[1], device=flat.device)
        return total.index_add_(0, self._turn, flat[self._tokens].float()) / self._counts


def out_of_memory(error: Exception) -> bool:
    """Whether a pass failed for lack of memory; on a CPU torch has no class of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


class _DeepestReached(Exception):  # noqa: N818  not an error
    """Ends a forward pass: nothing after the deepest layer is wanted."""


@contextmanager
def _watch(blocks: nn.ModuleList, layers: Sequence[int], keep: Any) -> Iterator[None]:  # noqa: ANN401
    """Hand the output of the asked blocks to ``keep`` and stop after the deepest."""
    deepest = max(layers)

    def read(layer: int, _module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401
        keep(layer, output if isinstance(output, Tensor) else output[0])
        if layer == deepest:
            raise _DeepestReached

    with forward_hooks((blocks[layer], partial(read, layer)) for layer in set(layers)):
        yield


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group rows of like length so that rows times the longest stays within the budget; ties keep their order."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
