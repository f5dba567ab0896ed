"""Safety-preserving fine-tuning and its evaluation; public names are imported on first use."""

import importlib
from typing import TYPE_CHECKING

_MODULES = {
    "Experiment": "training.experiment",
    "RefusalReport": "evaluation.refusal_report",
    "SapConfig": "training.sap_config",
    "SapTrainer": "training.sap",
    "compare_refusals": "evaluation.refusal_report",
    "evaluate_refusals": "evaluation.refusal_report",
    "sap_lora": "training.sap_config",
    "training_rows": "conversation.training_rows",
}

__all__ = [
    "Experiment",
    "RefusalReport",
    "SapConfig",
    "SapTrainer",
    "compare_refusals",
    "evaluate_refusals",
    "sap_lora",
    "training_rows",
]

if TYPE_CHECKING:
    from larf_curate.conversation.training_rows import training_rows
    from larf_curate.evaluation.refusal_report import RefusalReport, compare_refusals, evaluate_refusals
    from larf_curate.training.experiment import Experiment
    from larf_curate.training.sap import SapTrainer
    from larf_curate.training.sap_config import SapConfig, sap_lora


def __getattr__(name: str) -> object:
    """Import a public name on first use: importing this package must not import torch or trl."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"larf_curate.{_MODULES[name]}"), name)
