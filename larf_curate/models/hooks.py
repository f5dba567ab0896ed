"""Forward hooks that are registered for the duration of a ``with`` block."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

from torch import nn

Hook: TypeAlias = Callable[..., Any]
"""A hook as accepted by `torch.nn.Module.register_forward_hook` and ``register_forward_pre_hook``."""


@contextmanager
def forward_hooks(
    after: Iterable[tuple[nn.Module, Hook]], *, before: Iterable[tuple[nn.Module, Hook]] = ()
) -> Iterator[None]:
    """Register forward hooks on modules; they are always removed, even if registering one of them fails.

    Args:
        after: Pairs of a module and a hook called after its forward pass; a returned value replaces the output.
        before: Pairs of a module and a hook called before it; a returned value replaces the inputs.
    """
    with ExitStack() as stack:  # each removal is scheduled before the next hook is registered
        for module, hook in before:
            stack.callback(module.register_forward_pre_hook(hook).remove)
        for module, hook in after:
            stack.callback(module.register_forward_hook(hook).remove)
        yield
