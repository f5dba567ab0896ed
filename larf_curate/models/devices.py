"""What this process computes on: devices, number formats, and what suits them."""

from typing import Literal

import torch
from transformers.utils import is_flash_attn_2_available

from larf_curate.errors import ModelError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
CPU_TOKENS = 512
ACCELERATOR_TOKENS = 16_384


def resolve_device(device: str | None = None, rank: int | None = None) -> str:
    """The device asked for, else the GPU of this rank, else the first accelerator there is, else the CPU."""
    if device and device != "auto":
        return device
    if torch.cuda.is_available():
        return f"cuda:{(rank or 0) % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ModelError: If nothing can be computed on it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot compute on device {device!r}: {first}; leave it out to take what there is") from error


def resolve_dtype(dtype: Dtype, device: str) -> Dtype:
    """``auto`` becomes bfloat16 where the device computes in it, float32 elsewhere."""
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"


def flash_attention(device: str, dtype: Dtype) -> bool:
    """Whether the FlashAttention package is there and can serve this device and number format."""
    half = resolve_dtype(dtype, device) in ("bfloat16", "float16")
    return half and device.startswith("cuda") and bool(is_flash_attn_2_available())


def suited_tokens(device: str) -> int:
    """Tokens of one forward pass that compute fast.

    On a CPU, larger ones do not stay in its caches: on a small model, 512 tokens a thread took two thirds of the time
    that 4,096 took. An accelerator wants enough to keep all its units busy.
    """
    return ACCELERATOR_TOKENS if device != "cpu" else min(CPU_TOKENS * torch.get_num_threads(), ACCELERATOR_TOKENS)
