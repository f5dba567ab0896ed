"""Checkpoints with quantised weights: how they are loaded, and what is missing if they cannot be."""

from importlib.util import find_spec
from typing import Any

LIBRARIES = {
    "awq": ("gptqmodel",),
    "bitsandbytes": ("bitsandbytes",),
    "compressed-tensors": ("compressed-tensors",),
    "gptq": ("optimum", "gptqmodel"),
    "hqq": ("hqq",),
    "torchao": ("torchao",),
}
"""Libraries that `transformers` needs for a method of quantisation, by their names on PyPI."""


def is_quantised(config: Any) -> bool:  # noqa: ANN401  any config of transformers
    """Whether the weights of a model are quantised: GPTQ and AWQ keep them in buffers, not in parameters."""
    return bool(_settings(config))


def dequantise(config: Any) -> None:  # noqa: ANN401  any config of transformers
    """Have compressed tensors with unquantised activations loaded as dense weights, which have the same values.

    By itself, compressed-tensors makes them dense in the first forward pass, and cannot load asymmetric ones: it gives
    their packed zero points the shape of unpacked ones (0.20). Quantised activations would be lost, and remain.
    """
    settings = _settings(config)
    groups = settings.get("config_groups")
    if settings.get("quant_method") != "compressed-tensors" or not isinstance(groups, dict):
        return
    if all(isinstance(group, dict) and not group.get("input_activations") for group in groups.values()):
        config.quantization_config = settings | {"dequantize": True}


def missing_for(config: Any) -> str:  # noqa: ANN401  any config of transformers
    """What to do about a quantised model that cannot be loaded; empty for other models."""
    settings = _settings(config)
    if not settings:
        return ""
    method = settings.get("quant_method") or "bitsandbytes"  # older files of bitsandbytes do not name it
    missing = [name for name in LIBRARIES.get(method, ()) if find_spec(name.replace("-", "_")) is None]
    install = f"pip install {' '.join(missing)}, or " if missing else ""
    return f"its weights are quantised ({method}): {install}give the model without quantisation"


def _settings(config: Any) -> dict[str, Any]:  # noqa: ANN401  any config of transformers
    found = getattr(config, "quantization_config", None) or {}
    return found if isinstance(found, dict) else found.to_dict()
