"""Greedy decoding of a batch that shrinks: answers that have ended leave it, and with them their forward passes."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from larf_curate.models.output_head import contiguous_head
from larf_curate.models.prefix_cache import cache_argument

LEAVING = 4
"""The batch shrinks once one row in so many has ended: each time, the keys and values of the others are copied."""
RELATIVE = ("begin_suppress_tokens", "exponential_decay_length_penalty", "guidance_scale")
"""Options of `generate` that count from the beginning of a call; a model's generation config may set them."""
PROBE = [1, 2, 3, 4]
"""Token ids that show whether padding changes what follows."""
Ended = Callable[[Sequence[int], Sequence[list[int]]], Sequence[bool]]
"""Takes numbers of prompts and their new tokens so far; returns for each whether it needs no more."""


@torch.no_grad()
def decode_shrinking(
    model: Any,  # noqa: ANN401  transformers has no types
    prompts: Sequence[list[int]],
    config: GenerationConfig,
    *,
    ended: Ended | None = None,
    processors: LogitsProcessorList | None = None,
    advance: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Decode continuations of one batch of prompts.

    A continuation ends at the first token in ``eos_token_id``, after ``max_new_tokens``, or when ``ended`` says so.

    Args:
        model: A causal language model of transformers.
        prompts: Token ids of the prompts.
        config: Options of `generate`: greedy, with ``max_new_tokens``, ``eos_token_id`` and ``pad_token_id``.
        ended: Ends continuations early; default: none.
        processors: Processors of the logits.
        advance: Called with the number of further continuations that are complete; default: nothing.

    Returns:
        New token ids of each prompt, with the token that ends them.
    """
    found: dict[int, list[int]] = {}
    for group in _groups(model, prompts, config):
        batch = _Batch(model, {row: prompts[row] for row in group}, config)
        with contiguous_head(model):
            while batch.rows:
                complete = batch.run(ended, processors)
                if advance is not None:
                    advance(complete)
        found |= batch.found
    return [found[row] for row in range(len(prompts))]


def _groups(model: Any, prompts: Sequence[list[int]], config: GenerationConfig) -> Iterable[Sequence[int]]:  # noqa: ANN401
    """Numbers of prompts that share a batch: those of one length if the model's states depend on padding."""
    lengths = list(map(len, prompts))
    recurrent = len(set(lengths)) > 1 and getattr(model, "_is_stateful", False)
    if not recurrent or _ignores_padding(model, config.pad_token_id):
        return [range(len(prompts))]
    return [[row for row, other in enumerate(lengths) if other == length] for length in dict.fromkeys(lengths)]


def _ignores_padding(model: Any, value: int) -> bool:  # noqa: ANN401
    """Whether a prompt's logits are the same, up to rounding, with padding before it."""

    def logits(prompts: Sequence[list[int]]) -> Tensor:
        ids, mask = (part.to(model.device) for part in left_padded(prompts, value))
        found: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, -1].float()
        return found

    alone = logits([PROBE])
    return torch.allclose(logits([PROBE, PROBE * 2]), alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max()))


class _Batch:
    """Rows that have not ended, with their keys and values."""

    def __init__(self, model: Any, prompts: Mapping[int, list[int]], config: GenerationConfig) -> None:  # noqa: ANN401
        self._model, self._config = model, config
        padded = left_padded(list(prompts.values()), config.pad_token_id)
        self._ids, self._mask = (part.to(model.device) for part in padded)
        self._start = self._ids.shape[1]
        self._cache = _selectable_cache(model, self._start + config.max_new_tokens)
        self.rows = list(prompts)
        self.found: dict[int, list[int]] = {}

    def run(self, ended: Ended | None, processors: LogitsProcessorList | None) -> int:
        """Decode until so many rows have ended that the batch can shrink, remove them, and return their number."""
        lengths: dict[int, int] = {}  # number of tokens of the rows that have ended, by their place in the batch

        # A function, since `generate` copies stopping criteria deeply.
        def stop(ids: Tensor, _scores: object, **_options: object) -> Tensor:
            self._note_ended(ids[:, self._start :].tolist(), lengths, ended)
            enough = len(lengths) * LEAVING >= len(self.rows) and self._cache is not None
            return torch.tensor([enough or place in lengths for place in range(len(ids))], device=ids.device)

        used = self._ids.shape[1] - self._start
        config = copy(self._config)
        config.max_new_tokens -= used
        sequences = self._model.generate(
            input_ids=self._ids,
            attention_mask=self._mask,
            generation_config=config,
            stopping_criteria=StoppingCriteriaList([stop]),
            logits_processor=processors,
            **({} if self._cache is None else cache_argument(self._model, self._cache)),
        )
        if sequences.shape[1] - self._start == self._config.max_new_tokens or self._cache is None:
            lengths |= {
                place: sequences.shape[1] - self._start for place in range(len(self.rows)) if place not in lengths
            }
        self._remove(sequences, lengths)
        return len(lengths)

    def _note_ended(self, new: list[list[int]], lengths: dict[int, int], ended: Ended | None) -> None:
        """Note the places of the rows that have ended with their last token."""
        running = [place for place in range(len(new)) if place not in lengths]
        stops = self._config.eos_token_id
        done = [new[place][-1] in stops for place in running]
        if ended is not None:
            decided = ended([self.rows[place] for place in running], [new[place] for place in running])
            done = [a or b for a, b in zip(done, decided, strict=True)]
        lengths |= {place: len(new[place]) for place, end in zip(running, done, strict=True) if end}

    def _remove(self, sequences: Tensor, lengths: dict[int, int]) -> None:
        """Keep the tokens of the rows that have ended, and go on with the others."""
        for place, length in lengths.items():
            self.found[self.rows[place]] = sequences[place, self._start : self._start + length].tolist()
        kept = [place for place in range(len(self.rows)) if place not in lengths]
        grown = sequences.shape[1] - self._ids.shape[1]
        self.rows = [self.rows[place] for place in kept]
        if not kept:
            return
        index = torch.tensor(kept, device=sequences.device)
        self._ids, self._mask = sequences[index], pad(self._mask[index], (0, grown), value=1)
        if self._cache is not None:
            self._cache.batch_select_indices(index)


def _selectable_cache(model: Any, length: int) -> DynamicCache | None:  # noqa: ANN401
    """An empty cache from which rows can be removed between two calls of `generate`.

    Args:
        model: A causal language model of transformers.
        length: Most tokens of a row.

    Returns:
        None for models with recurrent states, without explicit positions, with a window that is shorter than a row, or
        whose generation config has a cache of its own or options that are `RELATIVE`: there the batch stays as it is.
    """
    own = getattr(model, "generation_config", None)
    if any(getattr(own, name, None) is not None for name in ("cache_implementation", *RELATIVE)):
        return None
    if getattr(model, "_is_stateful", False) or "position_ids" not in inspect.signature(model.forward).parameters:
        return None
    cache = DynamicCache(config=model.config)
    return cache if all(_is_selectable(layer, length) for layer in cache.layers) else None


def _is_selectable(layer: Any, length: int) -> bool:  # noqa: ANN401  any cache layer of transformers
    return type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= length)


def left_padded(prompts: Sequence[list[int]], value: int) -> tuple[Tensor, Tensor]:
    """Token ids of a left-padded batch and its mask, each of shape (prompts, longest).

    Args:
        prompts: Token ids of the prompts.
        value: Token id of the padding.
    """
    rows = [torch.tensor(prompt) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
    return ids, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
