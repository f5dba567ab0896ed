"""Options of fine-tuning that are one of a few words."""

from typing import Literal, get_args

TrainingMethod = Literal["sft", "sap"]
"""Plain supervised fine-tuning, or Safety-Aware Probing."""
TRAINING_METHODS: tuple[TrainingMethod, ...] = get_args(TrainingMethod)

ProbeStep = Literal["sign", "unit"]
"""How a gradient becomes a probe: every coordinate by ``beta``, or all probes together by a length of ``beta``."""
PROBE_STEPS: tuple[ProbeStep, ...] = get_args(ProbeStep)

Refusals = Literal["given", "own"]
"""What SAP contrasts unsafe answers with: the refusals of the references, or the model's own."""
REFUSALS: tuple[Refusals, ...] = get_args(Refusals)
