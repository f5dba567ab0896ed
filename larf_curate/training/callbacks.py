"""Trainer callbacks: what a step costs, and a stop before a broken gradient reaches the weights."""

import resource
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from larf_curate.errors import TrainingError
from larf_curate.training.checkpoints import last_whole
from larf_curate.training.probes import flat_norm


class CostCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Logs ``seconds_per_step`` and ``peak_memory_mb`` with every log line, for SFT and SAP alike.

    The time covers optimizer steps only, not evaluation or saving. Memory is the accelerator's peak; without one, the
    peak of the process, its libraries included.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since_log = 0
        self._start = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the clock."""
        self._start = perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Stop the clock."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(perf_counter() - self._start)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Add the mean over the steps since the last log line."""
        fresh = self.seconds[self._since_log :]
        if logs is None or not fresh:
            return
        self._since_log = len(self.seconds)
        cost = {"seconds_per_step": sum(fresh) / len(fresh), "peak_memory_mb": peak_memory_mb()}
        logs.update(cost)
        state.log_history[-1].update(cost)


class FiniteGuard(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Stops with a `TrainingError` when a gradient is NaN or infinite, before the optimizer uses it.

    Weights that a step has broken are found before they are saved.
    """

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Look at all gradients; under DDP they are already reduced, so that every process stops."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None] if model is not None else []
        if gradients and not torch.isfinite(flat_norm(gradients)):
            raise not_finite("the loss or its gradient", args, state)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Look at all trained weights."""
        weights = [p for p in model.parameters() if p.requires_grad] if model is not None else []
        if weights and not torch.isfinite(flat_norm(weights)):
            raise TrainingError(
                f"the weights are not finite after step {state.global_step}; {_kept(args)}: lower learning_rate"
            )


def not_finite(what: str, args: TrainingArguments, state: TrainerState) -> TrainingError:
    """The error for a NaN or infinite value: which, at which step, and which checkpoint is good."""
    return TrainingError(
        f"{what} is not finite at step {state.global_step + 1} (epoch {state.epoch or 0:.2f}); the weights were not "
        f"updated and {_kept(args)}: lower learning_rate, or look at the rows of this step"
    )


def _kept(args: TrainingArguments) -> str:
    folder = Path(args.output_dir)
    checkpoint = last_whole(folder)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"


def peak_memory_mb() -> float:
    """Peak memory in MB: the accelerator's, or the process's where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
