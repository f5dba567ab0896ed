"""Dtypes that a model can be loaded in; importable without torch."""

from typing import Literal, get_args

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
"""``auto`` is bfloat16 where the hardware supports it natively, float32 elsewhere."""
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
