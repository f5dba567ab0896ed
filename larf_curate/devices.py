"""What this process computes on: devices, number formats, and its share of the cores."""

from typing import Literal

import multiprocess
import torch

from larf_curate.errors import ModelError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


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


def in_worker() -> bool:
    """Whether this is a worker process.

    A forked one waits for ever for the thread pools of its parent: libraries must be told to use one thread there.
    """
    return multiprocess.parent_process() is not None
