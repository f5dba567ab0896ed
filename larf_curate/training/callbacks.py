"""Trainer callbacks: cost of each step, a progress bar, and a stop before a NaN gradient reaches the weights."""

import resource
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from larf_curate.errors import TrainingError
from larf_curate.progress import progress
from larf_curate.training.checkpoints import last_complete
from larf_curate.training.probes import global_norm


class CostCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Adds ``seconds_per_step`` and ``peak_memory_mb`` to every log entry, for SFT as for SAP.

    The time covers optimizer steps only, not evaluation or saving. Memory is the peak of the accelerator or, without
    one, of the process, including its libraries.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since_log = 0
        self._start = 0.0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the timer."""
        self._start = perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Stop the timer."""
        if torch.cuda.is_available():  # kernels run asynchronously
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
        """Add the mean over the steps since the last log entry."""
        recent = self.seconds[self._since_log :]
        if logs is None or not recent:
            return
        self._since_log = len(self.seconds)
        cost = {"seconds_per_step": sum(recent) / len(recent), "peak_memory_mb": peak_memory_mb()}
        logs.update(cost)
        state.log_history[-1].update(cost)  # the trainer has copied the entry before it calls this


class TrainingBar(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Shows the optimizer steps as one progress bar, with the loss of the last one; of several processes, one does."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Open the bar."""
        if state.is_world_process_zero:
            self._bar = progress(
                label="Training", unit="step", total=max(state.max_steps, state.global_step), done=state.global_step
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Show the loss."""
        if self._bar is not None and logs and "loss" in logs:
            self._bar.set_postfix_str(f"loss {float(logs['loss']):.3g}", refresh=False)

    def close(self) -> None:
        """Close the bar, also of a run that was interrupted, so that what is said then has a line of its own."""
        if self._bar is not None:
            self._bar.close()


class FiniteGuard(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Raises a `TrainingError` if a gradient is NaN or infinite, before the optimizer uses it.

    The weights are checked after each step too, before they can be saved.
    """

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Check all gradients; under DDP they are already averaged, so that every process stops."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None] if model is not None else []
        if gradients and not torch.isfinite(global_norm(gradients)):
            raise not_finite("the loss or its gradient", args, state)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: object,
    ) -> None:
        """Check all trainable weights."""
        weights = [p for p in model.parameters() if p.requires_grad] if model is not None else []
        if weights and not torch.isfinite(global_norm(weights)):
            raise TrainingError(
                f"the weights are not finite after step {state.global_step}; {_last_checkpoint(args)}: lower "
                "learning_rate"
            )


def not_finite(what: str, args: TrainingArguments, state: TrainerState) -> TrainingError:
    """The error for a NaN or infinite value: what it is, at which step, and which checkpoint can be resumed."""
    return TrainingError(
        f"{what} is not finite at step {state.global_step + 1} (epoch {state.epoch or 0:.2f}); the weights were not "
        f"updated and {_last_checkpoint(args)}: lower learning_rate, or check the rows of this step"
    )


def _last_checkpoint(args: TrainingArguments) -> str:
    """Says which checkpoint can be resumed, for error messages."""
    folder = Path(args.output_dir)
    checkpoint = last_complete(folder)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"


def peak_memory_mb() -> float:
    """Peak memory in MiB: of the accelerator, or of the process if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # ru_maxrss is in bytes on macOS and in KiB on Linux.
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
