"""Common beginnings of conversations, such as a system message: found, run once, and attended to by many rows."""

import inspect
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

MIN_PREFIX = 4
"""Fewest tokens of a beginning that is run apart."""
MIN_SAVING = 64
"""Fewest tokens that a beginning of only some of the rows must save: such rows cannot share a batch with others."""


@dataclass(frozen=True)
class Prefix:
    """A common beginning.

    Args:
        length: Its number of tokens; 0 for none.
        cache: Its keys and values, for one row.
    """

    length: int = 0
    cache: DynamicCache | None = None

    def repeated(self, rows: int) -> DynamicCache | None:
        """Keys and values for a batch of ``rows``, which a forward pass leaves as they are."""
        if self.cache is None or all(isinstance(layer, _Kept) for layer in self.cache.layers):
            return self.cache
        own = deepcopy(self.cache)
        own.batch_repeat_interleave(rows)
        return own


def run_prefix(model: nn.Module, ids: Sequence[int], device: torch.device) -> Prefix:
    """Run a common beginning once.

    Args:
        model: A decoder.
        ids: Its tokens.
        device: Where the model lies.
    """
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([list(ids)], device=device), use_cache=True, **cache_argument(model, cache))
    kept = copy(cache)
    kept.layers = [_kept(layer) for layer in cache.layers]
    return Prefix(len(ids), kept)


def cache_argument(model: Any, cache: DynamicCache | None) -> dict[str, DynamicCache | None]:  # noqa: ANN401
    """Keys and values as the keyword argument that a model's ``forward`` takes them by.

    transformers 5.24 renamed ``past_key_values`` to ``cache`` and drops the old name in 5.40.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT hands arguments through
    return {"cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values": cache}


class _Kept:
    """Keys and values that are given to every row of a batch and never grow."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Keys and values of the beginning and of the rest, shape (rows, heads, tokens, width)."""
        rows = len(key_states)
        keys, values = (kept.expand(rows, -1, -1, -1) for kept in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class _KeptLayer(_Kept, DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A whole layer's."""


class _KeptWindow(_Kept, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A sliding window's."""


_KINDS: dict[type, Any] = {DynamicLayer: _KeptLayer, DynamicSlidingWindowLayer: _KeptWindow}


def _kept(layer: Any) -> Any:  # noqa: ANN401  any cache layer of transformers
    """The same layer, kept as it is by a forward pass; one of another kind stays what it was."""
    kind = _KINDS.get(type(layer))
    if kind is None:
        return layer
    kept = kind.__new__(kind)
    vars(kept).update(vars(layer))
    return kept


def grouped(conversations: Sequence[list[int]], limits: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group conversations by common beginnings, those that save most tokens first.

    Args:
        conversations: n token lists.
        limits: How many tokens of each may be run apart.

    Returns:
        Length of a group's common beginning and the places of its members, every place once; length 0 for the rest.
    """
    heads = [ids[: max(limit, 0)] for ids, limit in zip(conversations, limits, strict=True)]
    left = sorted(range(len(heads)), key=heads.__getitem__)
    common = [_shared(heads[a], heads[b]) for a, b in zip(left, left[1:], strict=False)]
    groups = []
    while common:
        saving, length, first, last = _best_run(common)
        everyone = last - first == len(conversations) - 1
        if length < MIN_PREFIX or saving < MIN_SAVING and not everyone:
            break
        groups.append((length, sorted(left[first : last + 1])))
        across = [min(common[first - 1 : last + 1])] if first and last < len(common) else []
        common = common[: max(first - 1, 0)] + across + common[last + 1 :]
        left = left[:first] + left[last + 1 :]
    return [*groups, (0, sorted(left))] if left else groups


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of leading tokens that two lists share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _best_run(common: Sequence[int]) -> tuple[int, int, int, int]:
    """The run of neighbours whose common beginning saves most: tokens saved, its length, first and last member.

    Args:
        common: Common length of every neighbouring pair in sorted order: the run is the largest rectangle under it.
    """
    best, open_runs = (0, 0, 0, 0), list[tuple[int, int]]()
    for place, height in enumerate([*common, 0]):
        first = place
        while open_runs and open_runs[-1][1] >= height:
            first, length = open_runs.pop()
            best = max(best, (length * (place - first), length, first, place))
        open_runs.append((first, height))
    return best
