"""The part of a forward pass that two passes have in common, computed once: the blocks up to the first probe's."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from larf_curate.models.hooks import forward_hooks
from larf_curate.training.probes import frozen

SHARED_TOKENS = 1024
"""Tokens of an optimizer step whose prefixes are kept: those of several micro-batches are in memory at once."""


@dataclass
class Prefix:
    """Output of the last block of a prefix, with its graph, and the random state after it; empty until recorded.

    Args:
        output: What the block returned.
        random_states: State of the random numbers of the CPU and of each device, by which later blocks drop out.
        seconds: Time that it took.
    """

    output: Any = None
    random_states: tuple[Tensor, ...] = ()
    seconds: float = 0.0


class SharedPrefixes:
    """Prefixes of the micro-batches of an optimizer step, kept from one pass for a later one with the same weights.

    Args:
        model: A causal language model of transformers, or of peft around one.
        blocks: The blocks of the prefix.
        devices: Numbers of the CUDA devices that draw random numbers.
        clock: The time in seconds.
        enabled: Whether to keep any.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401  transformers has no types
        blocks: Sequence[nn.Module],
        devices: Sequence[int],
        clock: Callable[[], float],
        *,
        enabled: bool = True,
    ) -> None:
        self._blocks, self._devices, self._clock = blocks, devices, clock
        self._works = enabled and can_resume(model, blocks)
        self._kept: deque[Prefix] = deque()
        self._current: Prefix | None = None

    def count(self, batches: Sequence[Mapping[str, Any]]) -> int:
        """Number of micro-batches, from the first, whose prefixes are to be kept: 0 if the model cannot resume."""
        tokens: Iterator[int] = accumulate(batch["input_ids"].numel() for batch in batches)
        return max(sum(total <= SHARED_TOKENS for total in tokens), 1) if self._works else 0

    @contextmanager
    def keeping(self, weights: list[Tensor]) -> Iterator[None]:
        """Keep the prefix of a pass with its graph; blocks after it compute no gradients of weights."""
        start, seconds = self._clock(), 0.0
        with ExitStack() as stack:

            def end() -> None:
                nonlocal seconds
                seconds = self._clock() - start
                stack.enter_context(frozen(weights))

            prefix = stack.enter_context(recorded(self._blocks[-1], self._devices, end))
            yield
        prefix.seconds = seconds
        self._kept.append(prefix)

    @contextmanager
    def next(self) -> Iterator[float]:
        """Make the next prefix, if there is one, that of `resumed`; yields the seconds that it took."""
        self._current = self._kept.popleft() if self._kept else None
        try:
            yield self._current.seconds if self._current else 0.0
        finally:
            self._current = None

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Let the next forward pass start from the prefix of `next`, if there is one."""
        with resumed(self._current, self._blocks, self._devices) if self._current else nullcontext():
            yield

    def drop(self) -> None:
        """Drop all prefixes."""
        self._kept.clear()


@contextmanager
def recorded(block: nn.Module, devices: Sequence[int], at_end: Callable[[], None]) -> Iterator[Prefix]:
    """Record the prefix of the first forward pass.

    Args:
        block: The last block of the prefix.
        devices: Numbers of the CUDA devices that draw random numbers.
        at_end: Called when the prefix is computed.
    """
    prefix = Prefix()

    def record(_module: nn.Module, _inputs: object, output: object) -> None:
        if prefix.output is None:
            prefix.output = output
            prefix.random_states = torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)
            at_end()

    with forward_hooks([(block, record)]):
        yield prefix


@contextmanager
def resumed(prefix: Prefix, blocks: Sequence[nn.Module], devices: Sequence[int]) -> Iterator[None]:
    """Let the next forward pass start from a recorded prefix instead of computing its blocks.

    Args:
        prefix: The recorded prefix.
        blocks: All of its blocks; hooks on them still run.
        devices: Those that it was recorded with.
    """

    def given(*_args: object, **_options: object) -> Any:  # noqa: ANN401  what the block returns
        torch.set_rng_state(prefix.random_states[0])
        for state, device in zip(prefix.random_states[1:], devices, strict=True):
            torch.cuda.set_rng_state(state, device)
        return prefix.output

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(_restore, block, block.__dict__.get("forward"))
            block.forward = given
        yield


@torch.no_grad()
def can_resume(model: Any, blocks: Sequence[nn.Module]) -> bool:  # noqa: ANN401  transformers has no types
    """Whether all that is computed after a prefix depends on its last output alone, tried on a few tokens.

    Args:
        model: A causal language model of transformers, or of peft around one.
        blocks: The blocks of the prefix.
    """
    ids = torch.arange(1, 5, device=model.device)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    training = model.training
    model.eval()
    try:
        with recorded(blocks[-1], (), lambda: None) as prefix:
            whole = model(**inputs).logits
        with resumed(prefix, blocks, ()):
            return torch.equal(model(**inputs).logits, whole)
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError):  # on what was not computed
        return False
    finally:
        model.train(training)


def _restore(block: nn.Module, forward: Any) -> None:  # noqa: ANN401
    """Put back the forward method that a block itself has, or that of its class."""
    del block.forward
    if forward is not None:
        block.forward = forward
