"""Defaults that depend on the hardware: device, dtype, attention kernel and batch size."""

import torch
from transformers.utils import is_flash_attn_2_available

from larf_curate.errors import ModelError
from larf_curate.models.dtypes import Dtype

CPU_TOKENS = 512
"""Tokens per thread of a CPU and forward pass."""
ACCELERATOR_TOKENS = 16_384
"""Tokens per forward pass of an accelerator."""

BATCH_FLOP = {"cpu": 2e12, "mps": 1e14}
"""Floating-point operations of rows that are scored together, by device type: they take some seconds."""
ACCELERATOR_FLOP = 2e15
"""The same for all other device types."""


def resolve_device(device: str | None = None, rank: int | None = None) -> str:
    """Resolve a device: the one given, else the CUDA GPU of this rank, else MPS, else the CPU.

    Args:
        device: A torch device; None or ``auto`` to choose one.
        rank: Rank of this worker process, which selects among several GPUs; default: the first GPU.
    """
    if device and device != "auto":
        return device
    if torch.cuda.is_available():
        return f"cuda:{(rank or 0) % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Check that a device is available.

    Raises:
        ModelError: If no tensor can be allocated on it.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot compute on device {device!r}: {first}; omit it to use an available one") from error


def resolve_dtype(dtype: Dtype, device: str) -> Dtype:
    """Resolve ``auto``: bfloat16 where the hardware supports it natively, else float32; other dtypes are unchanged."""
    if dtype != "auto":
        return dtype
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if device == "cpu" and torch.cpu._is_avx512_bf16_supported() else "float32"


def supports_flash_attention(device: str, dtype: Dtype) -> bool:
    """Whether the FlashAttention package is installed and supports this device and dtype."""
    half = resolve_dtype(dtype, device) in ("bfloat16", "float16")
    return half and device.startswith("cuda") and bool(is_flash_attn_2_available())


def default_batch_tokens(device: str) -> int:
    """Number of tokens per forward pass at which a device type is fast.

    On a CPU, larger batches do not fit into the caches: for a small model, 512 tokens per thread took two thirds of the
    time of 4,096. An accelerator needs enough tokens to keep all its units busy.
    """
    return ACCELERATOR_TOKENS if device != "cpu" else min(CPU_TOKENS * torch.get_num_threads(), ACCELERATOR_TOKENS)


def batch_flop(device: str) -> float:
    """Floating-point operations that take a device type some seconds."""
    return BATCH_FLOP.get(device.partition(":")[0], ACCELERATOR_FLOP)
