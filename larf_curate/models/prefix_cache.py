"""Shared prefixes of conversations, such as a system message: grouped, run once, and reused by all rows of a group."""

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
"""Fewest tokens of a prefix that is run separately."""
MIN_SAVING = 64
"""Fewest tokens that the prefix of only some rows must save, since these rows cannot share a batch with the others."""


@dataclass(frozen=True)
class Prefix:
    """A shared prefix that has been run.

    Args:
        length: Number of its tokens; 0 if there is no prefix.
        cache: Its keys and values, for one row.
    """

    length: int = 0
    cache: DynamicCache | None = None

    def for_batch(self, rows: int) -> DynamicCache | None:
        """Keys and values for a batch of ``rows``; a forward pass does not change the prefix's own."""
        if self.cache is None or all(isinstance(layer, _Fixed) for layer in self.cache.layers):
            return self.cache
        # Some layers of the cache are of another kind, such as recurrent states, which a forward pass overwrites.
        copied = deepcopy(self.cache)
        copied.batch_repeat_interleave(rows)
        return copied


def run_prefix(model: nn.Module, ids: Sequence[int], device: torch.device) -> Prefix:
    """Run a shared prefix once.

    Args:
        model: A decoder.
        ids: Token ids of the prefix.
        device: Device of the model.
    """
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([list(ids)], device=device), use_cache=True, **cache_argument(model, cache))
    fixed = copy(cache)
    fixed.layers = [_fix(layer) for layer in cache.layers]
    return Prefix(len(ids), fixed)


def cache_argument(model: Any, cache: DynamicCache | None) -> dict[str, DynamicCache | None]:  # noqa: ANN401
    """A cache as the keyword argument of a model's ``forward``.

    transformers 5.24 renamed ``past_key_values`` to ``cache`` and drops the old name in 5.40.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT passes arguments through
    return {"cache" if "cache" in inspect.signature(type(base).forward).parameters else "past_key_values": cache}


class _Fixed:
    """Mixin for cache layers whose keys and values are shared by every row of a batch and never grow."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """Keys and values of the prefix followed by those given, shape (rows, heads, tokens, width)."""
        rows = len(key_states)
        keys, values = (fixed.expand(rows, -1, -1, -1) for fixed in (self.keys, self.values))
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


class _FixedLayer(_Fixed, DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """Fixed keys and values of a layer with full attention."""


class _FixedWindowLayer(_Fixed, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """Fixed keys and values of a layer with sliding-window attention."""


_KINDS: dict[type, Any] = {DynamicLayer: _FixedLayer, DynamicSlidingWindowLayer: _FixedWindowLayer}


def _fix(layer: Any) -> Any:  # noqa: ANN401  any cache layer of transformers
    """A copy of a cache layer that forward passes do not change; layers of other kinds are returned as they are."""
    kind = _KINDS.get(type(layer))
    if kind is None:
        return layer
    fixed = kind.__new__(kind)
    vars(fixed).update(vars(layer))
    return fixed


def group_by_prefix(conversations: Sequence[list[int]], limits: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group conversations by shared prefixes, greedily: the prefix that saves most tokens first.

    Args:
        conversations: n lists of token ids.
        limits: Most tokens of each conversation that may belong to a prefix.

    Returns:
        For each group the length of its prefix and the indices of its members, every index once; length 0 for the rest.
    """
    heads = [ids[: max(limit, 0)] for ids, limit in zip(conversations, limits, strict=True)]
    # In lexicographic order, all conversations that share a prefix are neighbours.
    left = sorted(range(len(heads)), key=heads.__getitem__)
    common = [_common_length(heads[a], heads[b]) for a, b in zip(left, left[1:], strict=False)]
    groups = []
    while common:
        saving, length, first, last = _best_run(common)
        everyone = last - first == len(conversations) - 1
        if length < MIN_PREFIX or saving < MIN_SAVING and not everyone:
            break
        groups.append((length, sorted(left[first : last + 1])))
        # Removing the run makes its outer neighbours adjacent: they share the shortest prefix on the way between them.
        across = [min(common[first - 1 : last + 1])] if first and last < len(common) else []
        common = common[: max(first - 1, 0)] + across + common[last + 1 :]
        left = left[:first] + left[last + 1 :]
    return [*groups, (0, sorted(left))] if left else groups


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of leading tokens that two lists share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _best_run(common: Sequence[int]) -> tuple[int, int, int, int]:
    """The run of neighbours whose shared prefix saves most tokens: the largest rectangle in a histogram.

    Args:
        common: Length of the prefix that every two neighbours share, in sorted order.

    Returns:
        Tokens saved, length of the prefix, and the first and last member of the run.
    """
    best, open_runs = (0, 0, 0, 0), list[tuple[int, int]]()
    for index, height in enumerate([*common, 0]):  # the 0 closes all runs that are still open
        first = index
        while open_runs and open_runs[-1][1] >= height:
            first, length = open_runs.pop()
            best = max(best, (length * (index - first), length, first, index))
        open_runs.append((first, height))
    return best
