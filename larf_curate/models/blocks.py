"""Where a model keeps its decoder blocks and their projection weights, whatever its architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D

from larf_curate.errors import ModelError

SCALABLE = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Find the decoder blocks of a language model, bare, with a head or wrapped by PEFT.

    Args:
        model: A decoder of transformers.

    Returns:
        Its blocks in order; block ``i`` is the 0-based layer ``i`` everywhere in this package.

    Raises:
        ModelError: If there is no list of blocks as long as the config says.
    """
    config = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if config is not None else None
    count = getattr(text, "num_hidden_layers", None)
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists:
        raise ModelError(
            f"no list of {count} decoder blocks in {type(model).__name__}: only decoder models can be read"
        )
    return max(lists, key=lambda blocks: sum(p.numel() for p in blocks.parameters()))


def cut(config: Any, count: int) -> Any:  # noqa: ANN401  any config of transformers
    """A copy of a config that ends after its first ``count`` decoder blocks, per-block lists included."""
    short = deepcopy(config)
    text = short.get_text_config(decoder=True)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    return short


def same_blocks(whole: Any, short: Any, *, trust_remote_code: bool = False) -> bool:  # noqa: ANN401  two configs
    """Whether a model of a shorter config has the very parts of the whole one: shapes and plain attributes.

    False for a model whose first blocks depend on how many follow, by sharing keys or by scaling with the depth.
    """
    try:
        parts, fewer = (_parts(config, trust_remote_code) for config in (whole, short))
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError):
        return False
    return all(parts.get(name) == part for name, part in fewer.items())


def _parts(config: Any, trust_remote_code: bool) -> dict[str, Any]:  # noqa: ANN401  any config of transformers
    """Shapes of the parameters and the plain attributes of every module of a model, which is not filled."""
    with torch.device("meta"):
        model = AutoModel.from_config(config, trust_remote_code=trust_remote_code).get_decoder()
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    plain = (bool, int, float, str, list, type(None))
    own = {n: {k: v for k, v in vars(m).items() if isinstance(v, plain)} for n, m in model.named_modules()}
    return {**shapes, **{f"{name}.": attributes for name, attributes in own.items()}}


def projection_modules(block: nn.Module) -> dict[str, nn.Module]:
    """Find the modules of a block that project, by name: attention and feed-forward, fused or not.

    Norms and routers are none. Of a LoRA adapter only the second factor counts, so that scaling it with the weight it
    adapts scales their sum once.

    Args:
        block: A decoder block.

    Returns:
        Linear and Conv1D modules, and modules that hold the stacked matrices of experts.

    Raises:
        ModelError: If there is none, or a weight is quantised or adapted by DoRA.
    """
    if any("lora_magnitude_vector" in name for name, _ in block.named_parameters()):
        raise ModelError("weights with a DoRA adapter cannot be scaled: merge it first, with merge_and_unload()")
    found = {name: module for name, module in block.named_modules() if _projects(name, module)}
    if not found:
        raise ModelError(f"no projection weights in {type(block).__name__}: only linear layers can be scaled")
    for name, module in found.items():
        for weight in _weights(module).values():
            if weight.dtype not in SCALABLE:
                raise ModelError(
                    f"wanted floating-point weights, got {weight.dtype} in {name}: load without quantising"
                )
    return found


def projections(block: nn.Module) -> dict[str, nn.Parameter]:
    """The projection weights of a block by name: all matrices but those of routers; no norms, no biases.

    Args:
        block: A decoder block.

    Returns:
        For a Llama block ``self_attn.q_proj.weight`` and six more; fused ones (``qkv_proj``, ``gate_up_proj``,
        ``query_key_value``) count as they are.

    Raises:
        ModelError: If there is none, or a weight is quantised.
    """
    modules = projection_modules(block)
    return {f"{path}.{name}": weight for path, module in modules.items() for name, weight in _weights(module).items()}


@contextmanager
def scaled(block: nn.Module, alpha: float) -> Iterator[None]:
    """Multiply the projection weights of a block in place; afterwards they are what they were, bit for bit.

    Args:
        block: A decoder block.
        alpha: The factor.

    Raises:
        ModelError: If the block has no projection weights, or they are quantised.
    """
    weights = list(projections(block).values())
    copies = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.mul_(alpha)
        yield
    finally:
        with torch.no_grad():
            for weight, copy in zip(weights, copies, strict=True):
                weight.copy_(copy)


def _projects(name: str, module: nn.Module) -> bool:
    last = name.rpartition(".")[2]
    if last.endswith("gate") or "router" in name or ".lora_A" in f".{name}":
        return False
    return bool(_weights(module))


def _weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices a module itself holds: the weight of a linear layer, or the stacks of experts."""
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.Linear | Conv1D):
        return {"weight": own["weight"]} if "weight" in own else {}
    stacks = {name: weight for name, weight in own.items() if weight.ndim == 3}
    return {} if isinstance(module, nn.Conv1d) else stacks
