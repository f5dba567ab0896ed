"""Forward hooks for the duration of a ``with`` block."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import nn

Hook: TypeAlias = Callable[..., Any]
"""As `torch.nn.Module.register_forward_hook` and ``register_forward_pre_hook`` take it."""


@contextmanager
def forward_hooks(
    after: Iterable[tuple[nn.Module, Hook]], *, before: Iterable[tuple[nn.Module, Hook]] = ()
) -> Iterator[None]:
    """Call hooks around the forward passes of modules; they are always removed, also when registering one fails.

    Args:
        after: Modules with what is called behind their forward pass; a value that it returns replaces the output.
        before: Modules with what is called before it; a value that it returns replaces the inputs.
    """
    with ExitStack() as stack:
        for module, hook in before:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        for module, hook in after:
            stack.callback(module.register_forward_hook(hook).remove)
        yield
