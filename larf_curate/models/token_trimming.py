"""Work that scoring can leave out without changing a state, above all what becomes of tokens nobody reads.

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
"""``dedupe``: identical conversations run once; ``prefix``: common beginnings run once; ``trim``: in the last
block, only the tokens that are read pass the attention's query and output projections and the feed-forward layer."""
READ_ONLY_ENDS = ("mlp", "q_proj", "o_proj", "dense")
"""Names, in the blocks of transformers, of the modules whose output at a token depends on that token's input alone."""


@contextmanager
def only_at(block: nn.Module, tokens: Tensor) -> Iterator[None]:
    """Let the token-wise modules of a block compute some tokens only; their output is zero at the others.

    Args:
        block: The last block that runs: what it gives at other tokens is wrong and must not be read.
        tokens: Flat indices into (rows, length) of the tokens that will be read.
    """
    with ExitStack() as hooks:
        for name, module in block.named_modules():
            if name.rpartition(".")[2] in READ_ONLY_ENDS and name.count(".") < 2:
                hooks.enter_context(_narrowed(module, tokens))
        yield


@contextmanager
def _narrowed(module: nn.Module, tokens: Tensor) -> Iterator[None]:
    shape: list[torch.Size] = []

    def narrow(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        shape[:] = [inputs[0].shape[:2]]
        return (inputs[0].flatten(0, 1)[tokens].unsqueeze(0), *inputs[1:])

    def widen(_module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> Any:  # noqa: ANN401
        if not isinstance(output, Tensor):  # some experts give their router's scores too
            return (widen(_module, _inputs, output[0]), *output[1:])
        wide = output.new_zeros(shape[0].numel(), output.shape[-1])
        wide[tokens] = output[0]
        return wide.view(*shape[0], -1)

    with forward_hooks([(module, widen)], before=[(module, narrow)]):
        yield
