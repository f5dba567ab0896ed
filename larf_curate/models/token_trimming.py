"""Exact optimizations of reading states: deduplication, shared prefixes, token trimming; the last one lives here.

Each is exact up to floating-point rounding and can be switched off, so that its gain can be measured.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from larf_curate.models.hooks import forward_hooks

Shortcut = Literal["dedupe", "prefix", "trim"]
SHORTCUTS: frozenset[Shortcut] = frozenset({"dedupe", "prefix", "trim"})
"""``dedupe``: identical conversations are run once; ``prefix``: shared prefixes are run once; ``trim``: in the last
block, only the tokens that are read pass through the attention's query and output projections and the feed-forward
layer."""
TOKENWISE_MODULES = ("mlp", "q_proj", "o_proj", "dense")
"""Names, in the blocks of transformers, of modules whose output at a token depends on that token's input alone."""


@contextmanager
def trimmed_to(block: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Restrict the token-wise modules of a block to some tokens; their output is zero at all others.

    Args:
        block: The last block that runs: its output at other tokens is wrong and must not be read.
        tokens: Flat indices into (rows, length) of the tokens that will be read.
    """
    with ExitStack() as stack:
        for name, module in block.named_modules():
            # Deeper modules, such as experts, are inside one that is trimmed already.
            if name.rpartition(".")[2] in TOKENWISE_MODULES and name.count(".") < 2:
                stack.enter_context(_trimmed_module(module, tokens))
        yield


@contextmanager
def _trimmed_module(module: nn.Module, tokens: Tensor) -> Iterator[None]:
    shape: list[torch.Size] = []

    def gather(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        shape[:] = [inputs[0].shape[:2]]
        return (inputs[0].flatten(0, 1)[tokens].unsqueeze(0), *inputs[1:])

    def scatter(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
        if not isinstance(output, Tensor):  # some mixtures of experts return their router's scores too
            return (scatter(_module, _inputs, output[0]), *output[1:])
        full = output.new_zeros(shape[0].numel(), output.shape[-1])
        full[tokens] = output[0]
        return full.view(*shape[0], -1)

    with forward_hooks([(module, scatter)], before=[(module, gather)]):
        yield
