"""Fine-tuning that keeps safety, and the measures that show it; names load on first use."""

import importlib
from typing import TYPE_CHECKING

_HOMES = {
    "Experiment": "verify",
    "RefusalReport": "evaluate",
    "SapConfig": "sap",
    "SapTrainer": "sap",
    "compare_refusals": "evaluate",
    "evaluate_refusals": "evaluate",
    "sap_lora": "sap",
    "training_rows": "rows",
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
    from larf_curate.training.evaluate import RefusalReport, compare_refusals, evaluate_refusals
    from larf_curate.training.rows import training_rows
    from larf_curate.training.sap import SapConfig, SapTrainer, sap_lora
    from larf_curate.training.verify import Experiment


def __getattr__(name: str) -> object:
    """Load a public name from its module at first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
