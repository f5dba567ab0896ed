"""Allowed values of fine-tuning options; imports no torch, so that `--help` is fast."""

from typing import Literal, get_args

TrainingMethod = Literal["sft", "sap"]
"""Plain supervised fine-tuning, or Safety-Aware Probing."""
TRAINING_METHODS: tuple[TrainingMethod, ...] = get_args(TrainingMethod)

ProbeStep = Literal["sign", "unit"]
"""Step from a gradient to a probe: ``beta`` in every coordinate, or all probes together with norm ``beta``."""
PROBE_STEPS: tuple[ProbeStep, ...] = get_args(ProbeStep)

Refusals = Literal["given", "own"]
"""Refusals that SAP contrasts with unsafe answers: those of the references, or the model's own."""
REFUSALS: tuple[Refusals, ...] = get_args(Refusals)

Optimizer = Literal["adamw_torch_fused", "adamw_torch", "adafactor", "sgd"]
"""Optimizers by their names in transformers: AdamW keeps two numbers per trained weight, the last two hardly any."""
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)

TrainingDtype = Literal["float32", "bfloat16", "float16"]
"""Dtypes of loaded weights that TRL takes by name."""
TRAINING_DTYPES: tuple[TrainingDtype, ...] = get_args(TrainingDtype)

SAP_FIELDS = (
    "epsilon",
    "beta",
    "safe_cosine",
    "probe_step",
    "probe_blocks",
    "refusals",
    "contrastive_batch_size",
)
"""Fields of a recipe that only SAP has."""
