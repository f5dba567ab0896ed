"""Decoder blocks and their projection weights, found in models of any architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from larf_curate.errors import ModelError

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Dtypes of weights that can be scaled in place; quantised ones cannot."""


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the decoder blocks of a language model, with or without its head, also when wrapped by PEFT.

    Args:
        model: A decoder model of transformers.

    Returns:
        Its blocks in order; block ``i`` is the 0-based layer ``i`` everywhere in this package.

    Raises:
        ModelError: If no list of modules has as many entries as the config has hidden layers.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if config is not None else None
    count = getattr(text, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ModelError(
            f"no list of {count} decoder blocks in {type(model).__name__}: use a decoder-only language model"
        )
    # Of several lists of this length, the blocks are the one with the most weights: others contain norms or routers.
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def truncate_config(config: Any, count: int) -> Any:  # noqa: ANN401  any config of transformers
    """Copy a config for a model of only the first ``count`` decoder blocks, with its per-block lists shortened."""
    truncated = deepcopy(config)
    text = truncated.get_text_config(decoder=True)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return truncated


def has_same_blocks(full: Any, truncated: Any, *, trust_remote_code: bool = False) -> bool:  # noqa: ANN401  two configs
    """Whether the modules of a truncated model are identical to those of the full one, apart from the weights' values.

    False if the first blocks depend on the number of blocks, for instance by sharing keys and values across blocks or
    by scaling with the depth.

    Args:
        full: Config of the full model.
        truncated: The same config with fewer blocks; see `truncate_config`.
        trust_remote_code: Whether code from the model's repository may run.
    """
    try:
        modules, fewer = (_module_signatures(config, trust_remote_code) for config in (full, truncated))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError):
        return False  # a config that cannot be built when truncated: the caller loads the full model
    return all(modules.get(name) == module for name, module in fewer.items())


def _module_signatures(config: Any, trust_remote_code: bool) -> dict[str, Any]:  # noqa: ANN401  any config of transformers
    """Shapes of all parameters and the plain attributes of all modules of a model."""
    with torch.device("meta"):  # no weights are allocated
        model = AutoModel.from_config(config, trust_remote_code=trust_remote_code).get_decoder()
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    plain = (bool, int, float, str, list, type(None))
    settings = {n: {k: v for k, v in vars(m).items() if isinstance(v, plain)} for n, m in model.named_modules()}
    return {**shapes, **{f"{name}.": attributes for name, attributes in settings.items()}}


def projection_modules(block: nn.Module) -> dict[str, nn.Module]:
    """Find the projection modules of a block by name: attention and feed-forward, fused or not.

    Norms and routers are excluded. Of a LoRA adapter only the second factor (B) counts: scaling it together with the
    weight that it adapts scales their sum exactly once.

    Args:
        block: A decoder block.

    Returns:
        Linear and Conv1D modules, and modules with stacked matrices of experts.

    Raises:
        ModelError: If there are none, or a weight is quantised or adapted by DoRA.
    """
    if any("lora_magnitude_vector" in name for name, _ in block.named_parameters()):
        raise ModelError("weights with a DoRA adapter cannot be scaled: merge it first, with merge_and_unload()")
    found = {name: module for name, module in block.named_modules() if _is_projection(name, module)}
    if not found:
        raise ModelError(f"no projection weights in {type(block).__name__}: only linear layers can be scaled")
    for name, module in found.items():
        for weight in _matrices(module).values():
            if weight.dtype not in FLOAT_DTYPES:
                raise ModelError(
                    f"wanted floating-point weights, got {weight.dtype} in {name}: load the model without quantising"
                )
    return found


def projections(block: nn.Module) -> dict[str, nn.Parameter]:
    """The projection weights of a block by name: all matrices except those of routers; no norms, no biases.

    Args:
        block: A decoder block.

    Returns:
        For a Llama block ``self_attn.q_proj.weight`` and six others; fused matrices (``qkv_proj``, ``gate_up_proj``,
        ``query_key_value``) are returned as they are.

    Raises:
        ModelError: If there are none, or a weight is quantised.
    """
    modules = projection_modules(block)
    return {f"{path}.{name}": weight for path, module in modules.items() for name, weight in _matrices(module).items()}


@contextmanager
def scaled(block: nn.Module, alpha: float) -> Iterator[None]:
    """Scale the projection weights of a block in place inside a ``with`` block, then restore them bit for bit.

    Args:
        block: A decoder block.
        alpha: The scale.

    Raises:
        ModelError: If the block has no projection weights, or they are quantised.
    """
    weights = list(projections(block).values())
    copies = [weight.detach().clone() for weight in weights]  # dividing by alpha would not undo the rounding
    try:
        with torch.no_grad():
            for weight in weights:
                weight.mul_(alpha)
        yield
    finally:
        with torch.no_grad():
            for weight, copy in zip(weights, copies, strict=True):
                weight.copy_(copy)


def _is_projection(name: str, module: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    if last.endswith("gate") or "router" in name or ".lora_A" in f".{name}":
        return False
    return bool(_matrices(module))


def _matrices(module: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices of a module, without its children: a linear layer's weight, or the stacked weights of experts."""
    direct = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.Linear | Conv1D):
        return {"weight": direct["weight"]} if "weight" in direct else {}
    stacks = {name: weight for name, weight in direct.items() if weight.ndim == 3}
    return {} if isinstance(module, nn.Conv1d) else stacks
