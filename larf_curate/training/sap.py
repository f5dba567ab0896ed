"""SAP, Safety-Aware Probing (https://arxiv.org/abs/2505.16737), as a TRL trainer: fine-tuning that keeps refusals.

One step, with W the trainable weights and V the probes, vectors added to the outputs of some decoder blocks::

    L_safety = mean of -log sigmoid((log p(refusal) - log p(harmful answer)) / temperature)
    g        = grad_W L_safety at V = 0
    W'       = W + epsilon |W| g / |g|                          moving along +g makes the model less safe
    V        = beta * step(grad_V [L_useful(W', V) - L_useful(W, V)] at V = 0)
    W        <- optimizer step on L_useful(W, V), then V = 0 again

``step`` is the sign of every coordinate, or the division by the norm over all probes; ``SapConfig.probe_step`` chooses.

V raises the useful loss in the harmful direction, so that the update turns away from it.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from larf_curate.errors import InputError, ModelError
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.generation import window_of
from larf_curate.training.answer_loss import SHARDED, AnswerLossTrainer
from larf_curate.training.callbacks import CostCallback, FiniteGuard, not_finite
from larf_curate.training.contrastive import ContrastiveRows, References, Sides, paired_sides
from larf_curate.training.margins import Margins
from larf_curate.training.own_refusals import own_refusals
from larf_curate.training.probes import added_probes, frozen, global_norm, probe_blocks, shifted_weights
from larf_curate.training.safe_gradient import turn
from larf_curate.training.sap_config import SapConfig
from larf_curate.training.shared_prefix import SharedPrefixes

# isort: split
from peft import PeftConfig  # importing sap_config has checked that it is installed

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)


class SapTrainer(AnswerLossTrainer):
    """``trl.SFTTrainer`` in which every optimizer step is a SAP step, for LoRA and for full fine-tuning.

    Prepare the rows with `training_rows`, so that only answers, including their end-of-turn token, are learned.

    With gradient accumulation, V is computed from all micro-batches of the optimizer step, so that 2 micro-batches of 4
    rows are equivalent to 1 of 8 rows. Under DDP every process takes different contrastive rows, and g and the probes'
    gradient are averaged over the processes before use, so that all processes have the same g, W' and V. These passes
    use the unwrapped model, so that DDP's reducer sees only the ordinary backward pass. Sharded weights (FSDP,
    DeepSpeed) are rejected.

    As many contrastive rows are computed at a time as have no more tokens than a micro-batch, both answers to a prompt
    in one sequence where the model's attention allows (`Margins`), and logits at learned positions only
    (`AnswerLossTrainer`).

    Dropout draws the same masks at W', at W and in the ordinary pass. Evaluation runs without probes. Compared with
    SFT, a step needs memory for one more copy of the trainable weights and one of their gradient.

    Up to the first probe, the pass for V at W and the ordinary pass are the same. They are computed once, for the first
    micro-batch and for as many as have `SHARED_TOKENS` together, since what is kept of these is in memory at once.

    With `SapConfig.safe_cosine`, the step goes away from harm in another way, which is not in the paper: before the
    gradient of the useful loss is clipped and used, its cosine with g is raised to a least one (`turn`). With
    ``beta=0`` this replaces the probes and their two passes.

    Every log entry has, averaged over its steps: ``sap/safety_loss``, ``sap/gradient_norm`` (of g),
    ``sap/probe_norm``, ``sap/probe_gradient_change`` (relative change of the probes' gradient from W to W'; near the
    resolution of the dtype it is rounding noise), ``sap/safe_cosine`` (of the gradient and g, before it is turned) and
    ``sap/cost`` (time of the steps divided by that of their ordinary part).

    Args:
        model: Model, or its folder or Hub id.
        args: Configuration.
        references: Contrastive rows: a `ReferenceSet`, a name for `ReferenceSet.load`, a dataset with the columns
            prompt, unsafe and safe, or an iterable of (prompt, unsafe, safe).
        train_dataset: Rows of `training_rows`, or of any format that TRL accepts.
        eval_dataset: The same, for the evaluation loss, which is computed without probes.
        processing_class: Tokenizer; default: the model's.
        peft_config: Adapter to train, for example `sap_lora`; default: all weights are trained.
        data_collator: As in TRL.
        compute_metrics: As in TRL.
        callbacks: As in TRL; the cost of a step is always logged.
        optimizers: As in TRL.

    Raises:
        InputError: If the contrastive rows or the probe blocks cannot be used, or the weights are sharded.
        ModelError: If the model has no trainable weights or no layer that the LoRA names.
    """

    sides: Sides
    """Unsafe and safe conversations that are contrasted, paired by index."""
    # Attributes of TRL's trainer: its count of tokens seen, and the tags and the name it writes into model cards.
    _total_train_tokens: int
    _tag_names: ClassVar[list[str]] = ["trl", "sap"]
    _name = "SAP"

    def __init__(
        self,
        model: str | PreTrainedModel,
        args: SapConfig,
        *,
        references: References,
        train_dataset: "Dataset | IterableDataset",
        eval_dataset: "Dataset | IterableDataset | dict[str, Dataset | IterableDataset] | None" = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config: PeftConfig | None = None,
        data_collator: Callable[..., Any] | None = None,
        compute_metrics: Callable[..., dict[str, float]] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        with loading_errors():
            super().__init__(
                model,
                args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                compute_metrics=compute_metrics,
                callbacks=[*callbacks, CostCallback(), FiniteGuard()],
                optimizers=optimizers,
                peft_config=peft_config,
            )
        self._check(args)
        blocks = decoder_blocks(self.model)
        self._blocks = {number: blocks[number] for number in probe_blocks(args.probe_blocks, len(blocks))}
        self._width: int = self.model.config.get_text_config().hidden_size
        tokenizer: Any = self.processing_class
        self._contrastive = self._contrastive_rows(references, getattr(tokenizer, "tokenizer", tokenizer))
        self._margins = Margins(self._contrastive, bf16=bool(args.bf16))
        self._upcoming: tuple[list[Mapping[str, Any]], Tensor | int | None] | None = None
        self._probes: dict[int, Tensor] = {}
        self._direction: list[Tensor] = []
        self._devices = sorted({w.device.index for w in self.model.parameters() if w.device.type == "cuda"})
        below = [blocks[number] for number in range(min(self._blocks) + 1)]
        # A loss of the balance of experts reads all blocks; other losses than TRL's need a second pass.
        whole = self.aux_loss_enabled or self.compute_loss_func or self.label_smoother or args.n_gpu > 1
        self._prefixes = SharedPrefixes(self.model, below, self._devices, lambda: self._now(), enabled=not whole)
        # Of the steps since the last log entry: their time, and that of the parts that SFT has too.
        self._total_seconds = 0.0
        self._ordinary_seconds = 0.0

    def _contrastive_rows(self, references: References, tokenizer: Any) -> ContrastiveRows:  # noqa: ANN401
        """Tokenized contrastive rows, with the refusals of the references or the model's own."""
        sides = paired_sides(references)
        length = min(self.args.contrastive_max_length, window_of(self.model.config))
        options = {"max_length": length, "seed": self.args.seed}
        if self.args.data_seed is not None:
            options["seed"] = self.args.data_seed
        given = ContrastiveRows.build(sides, tokenizer, **options)  # raises before the model generates answers
        self.sides = sides
        if self.args.refusals == "given":
            return given
        self.sides = own_refusals(sides, self.model, tokenizer)
        return ContrastiveRows.build(self.sides, tokenizer, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch the micro-batches of one optimizer step and keep them for its probes."""
        self._upcoming = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._upcoming

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Process one micro-batch with V added; V is computed at the first one of an optimizer step."""
        start = self._now()
        if self._upcoming is not None:
            self._probes = self._find_probes(model, *self._upcoming)
            self._upcoming = None
        middle = self._now()
        with added_probes(self._blocks, self._probes), self._prefixes.next() as seconds:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        end = self._now()
        if self._direction and self.accelerator.sync_gradients:  # all micro-batches are in the gradient
            self._turn_gradient()
            self._total_seconds += self._now() - end
        self._total_seconds += end - start
        self._ordinary_seconds += end - middle + seconds
        return loss

    def _turn_gradient(self) -> None:
        """Raise the cosine of the gradient and g, if it is too low; both are the same in all processes."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._log("safe_cosine", turn(weights, self._direction, self.args.safe_cosine))
        self._direction = []

    def compute_loss(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401  trl has no types
        """The loss as in TRL; a training step starts from the prefix that it has in common with the pass for V."""
        with self._prefixes.resumed():
            return super().compute_loss(*args, **options)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the cost of SAP since the last log entry, and log."""
        if self._ordinary_seconds:
            self._log("cost", self._total_seconds / self._ordinary_seconds)
            self._total_seconds = self._ordinary_seconds = 0.0
        super().log(logs, start_time)

    def _find_probes(
        self, model: nn.Module, batches: list[Mapping[str, Any]], items: Tensor | int | None
    ) -> dict[int, Tensor]:
        """The probes V of one optimizer step by block number, each of shape (d,); none if epsilon or beta is 0.

        Keeps the unit vector along g, if the gradient is to be turned.
        """
        self._prefixes.drop()  # those of a step that was interrupted
        probed = self.args.epsilon and self.args.beta
        if not probed and self.args.safe_cosine == -1:
            return {}
        unwrapped = self.accelerator.unwrap_model(model)
        unwrapped.train()
        weights = [weight for weight in unwrapped.parameters() if weight.requires_grad]
        direction = self._harmful_direction(unwrapped, weights, max(batch["input_ids"].numel() for batch in batches))
        if self.args.safe_cosine > -1:
            self._direction = direction
        if not probed:
            return {}
        with shifted_weights(weights, direction, self.args.epsilon * global_norm(weights)):
            at_shifted = self._probe_gradient(unwrapped, batches, items, weights)
        del direction  # frees one copy of the gradient before the next pass
        at_current = self._probe_gradient(unwrapped, batches, items, weights, kept=self._prefixes.count(batches))
        change = [a - b for a, b in zip(at_shifted, at_current, strict=True)]
        self._log("probe_gradient_change", global_norm(change) / global_norm(at_current).clamp(min=1e-30))
        probes = self._step(change)
        self._log("probe_norm", global_norm(probes))
        return dict(zip(self._blocks, probes, strict=True))

    def _harmful_direction(self, model: nn.Module, weights: list[Tensor], tokens: int) -> list[Tensor]:
        """The unit vector along g, one tensor per weight; zero if g is zero. ``tokens`` are computed at a time.

        If the model refuses with certainty, all -log sigmoid are near 0 and g underflows. The coefficients
        sigmoid(-margin) of the rows in g are therefore divided by the largest of them, which does not change the
        direction.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        index = self.state.global_step * world + rank
        rows = self._contrastive.batch(index, self.args.contrastive_batch_size)
        direction = [torch.zeros_like(weight) for weight in weights]
        largest, losses = torch.tensor(-torch.inf), []
        with self._same_dropout(), self._unmeasured():
            for part in self._contrastive.by_length(rows, tokens):
                with self.compute_loss_context_manager():
                    margins = self._margins(model, part) / self.args.temperature
                log_coefficients = functional.logsigmoid(-margins.detach())
                before, largest = largest.to(margins), torch.maximum(largest.to(margins), log_coefficients.max())
                loss = -((log_coefficients - largest).exp() * margins).sum() / len(rows)
                _accumulate(direction, (before - largest).exp(), torch.autograd.grad(loss, weights, allow_unused=True))
                losses.append(-functional.logsigmoid(margins.detach()))
        return self._unit(direction, largest, torch.cat(losses))

    def _unit(self, gradient: list[Tensor], log_scale: Tensor, losses: Tensor) -> list[Tensor]:
        """The unit vector along the mean of the processes' gradients, each divided by the exponential of its scale."""
        largest = self.accelerator.gather(log_scale.reshape(1)).max()
        direction = self._mean([part.mul_((log_scale - largest).exp().to(part.device)) for part in gradient])
        norm = global_norm(direction)
        self._log("safety_loss", self.accelerator.gather(losses).mean())
        self._log("gradient_norm", norm * largest.exp())
        if not torch.isfinite(norm):
            raise not_finite("the gradient of the safety loss", self.args, self.state)
        return [g.div_(norm.to(g.device)) if norm > 0 else g for g in direction]

    def _probe_gradient(
        self,
        model: nn.Module,
        batches: list[Mapping[str, Any]],
        items: Tensor | int | None,
        weights: list[Tensor],
        kept: int = 0,
    ) -> list[Tensor]:
        """Gradient of the useful loss by V at V = 0 over all micro-batches, averaged over the processes.

        The prefixes of the first ``kept`` micro-batches are kept.
        """
        zeros = {n: _zeros(block, self._width) for n, block in self._blocks.items()}
        total = [torch.zeros_like(zero) for zero in zeros.values()]
        with self._same_dropout(), self._metrics_unchanged(), self._unmeasured():
            for number, batch in enumerate(batches):
                weightless = self._prefixes.keeping(weights) if number < kept else frozen(weights)
                with weightless, added_probes(self._blocks, zeros):
                    with self.compute_loss_context_manager():
                        loss = self.compute_loss(model, self._prepare_inputs(dict(batch)), num_items_in_batch=items)
                    gradient = torch.autograd.grad(loss, list(zeros.values()))
                total = [t + g for t, g in zip(total, gradient, strict=True)]
        return self._mean(total)

    def _step(self, gradient: list[Tensor]) -> list[Tensor]:
        """The probes from the change of their gradient: its sign, or its direction, times beta."""
        norm = global_norm(gradient)
        if not torch.isfinite(norm):
            raise not_finite("the useful loss or its gradient", self.args, self.state)
        if self.args.probe_step == "sign" or norm == 0:
            return [self.args.beta * g.sign() for g in gradient]
        return [self.args.beta * g / norm.to(g.device) for g in gradient]

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """Mean of each tensor over the processes."""
        if self.accelerator.num_processes == 1:
            return tensors
        return [self.accelerator.reduce(tensor, reduction="mean") for tensor in tensors]

    @contextmanager
    def _same_dropout(self) -> Iterator[None]:
        """Restore the random state on exit, so that the next pass draws the same dropout masks."""
        with torch.random.fork_rng(self._devices):
            yield

    def _unmeasured(self) -> AbstractContextManager[None]:
        """Compute losses without what is only for metrics."""
        return self._head.unmeasured() if self._head else nullcontext()

    @contextmanager
    def _metrics_unchanged(self) -> Iterator[None]:
        """Keep passes that do not train out of TRL's metrics and token counts, which ``compute_loss`` updates."""
        metrics, tokens = self._metrics["train"], self._total_train_tokens
        self._metrics["train"] = defaultdict(list)
        try:
            yield
        finally:
            self._metrics["train"], self._total_train_tokens = metrics, tokens

    def _log(self, name: str, value: Tensor | float) -> None:
        self._metrics["train"][f"sap/{name}"].append(float(value))

    def _now(self) -> float:
        if self.args.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()

    def _check(self, args: SapConfig) -> None:
        """Reject sharded and frozen weights; warn if epsilon is below the resolution of the arithmetic."""
        if self.accelerator.distributed_type in SHARDED:
            raise InputError(
                f"SAP needs unsharded weights and does not support {self.accelerator.distributed_type.value}: "
                "run it on one device or with DDP"
            )
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        if not trained:
            raise ModelError("the model has no trainable weights: give peft_config, or unfreeze it")
        dtypes = {weight.dtype for weight in self.model.parameters() if weight.is_floating_point()}
        resolution = max(torch.finfo(dtype).eps for dtype in dtypes | ({torch.bfloat16} if args.bf16 else set()))
        # A move by less than half the resolution of a weight is mostly rounded away, but weights along which g is large
        # move several times as far as epsilon. So the limit is a rule of thumb below the resolution, which lets the
        # recommended 0.002 pass in bfloat16 (resolution 0.008).
        if args.beta and 0 < args.epsilon < resolution / 8:
            logger.warning(
                "epsilon=%s is below the resolution of this model's arithmetic (%.1e), so the probes follow rounding "
                "noise: set it to about 0.002 (--epsilon 0.002), or compute in float32 (without --bf16, dtype float32)",
                args.epsilon,
                resolution,
            )


@contextmanager
def loading_errors() -> Iterator[None]:
    """Turn errors about missing LoRA target modules and damaged weights into a `ModelError`."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"the model's weights are damaged ({error}): download or save them again") from error
    except ValueError as error:
        # peft has no exception class of its own for this.
        if isinstance(error, ModelError) or "target modules" not in str(error).lower():
            raise
        raise ModelError(
            f"the model has no layer that the LoRA names: {error}; name its linear layers in target_modules"
        ) from error


def _accumulate(total: list[Tensor], scale: Tensor, gradient: Sequence[Tensor | None]) -> None:
    """Scale a sum of gradients and add another gradient, in place."""
    for part, more in zip(total, gradient, strict=True):
        part.mul_(scale.to(part.device))
        if more is not None:
            part.add_(more)


def _zeros(block: nn.Module, width: int) -> Tensor:
    """A probe of zeros, shape (width,), float32 or wider, on the block's device."""
    weight = next(block.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
    return torch.zeros(width, dtype=dtype, device=weight.device, requires_grad=True)
