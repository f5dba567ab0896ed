"""Fine-tuning that keeps a model safe: SAP, Safety-Aware Probing (https://arxiv.org/abs/2505.16737), on TRL.

One step, with W the trainable weights and V the probes, vectors added behind some decoder blocks::

    L_safety = mean of -log sigmoid((log p(refusal) - log p(harmful answer)) / temperature)
    g        = grad_W L_safety at V = 0
    W'       = W + epsilon |W| g / |g|                          along +g the model gets less safe
    V        = beta * step(grad_V [L_useful(W', V) - L_useful(W, V)] at V = 0)
    W        <- optimizer step on L_useful(W, V), then V = 0 again

V makes the useful loss rise in the harmful direction, so that the update turns away from it.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from larf_curate.models.likelihood import answer_log_probs
from larf_curate.training.callbacks import CostCallback, FiniteGuard, not_finite
from larf_curate.training.contrastive import Batch, ContrastiveRows, References, both_sides
from larf_curate.training.own_refusals import own_refusals
from larf_curate.training.probes import flat_norm, probe_blocks, probing, shifted
from larf_curate.training.sap_config import SapConfig

# isort: split
from accelerate.utils import DistributedType  # sap_config has checked that these are installed
from peft import PeftConfig
from trl import SFTTrainer

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


class SapTrainer(SFTTrainer):  # type: ignore[misc]  # trl has no types
    """``trl.SFTTrainer`` whose every optimizer step is a step of SAP, for LoRA and for full weights.

    Prepare the rows with `training_rows`, so that only answers, with their end of turn, are learned.

    With gradient accumulation, V comes from all micro-batches of the optimizer step together, so that 2 micro-batches
    of 4 rows do what 1 of 8 rows does. Under DDP every process takes its own contrastive rows, and g and the probes'
    gradient are averaged over the processes before use: all processes have the same g, W' and V. These passes use the
    bare model, so that DDP's reducer sees the one ordinary backward pass only. Sharded weights (FSDP, DeepSpeed) are
    refused.

    Dropout draws the same masks at W', at W and in the ordinary pass. Evaluation runs without probes. A step needs
    one copy of the trainable weights and one of their gradient beyond SFT.

    Every log line has, averaged over its steps: ``sap/safety_loss``, ``sap/gradient_norm`` (of g),
    ``sap/probe_norm``, ``sap/probe_gradient_change`` (of the probes' gradient from W to W', relative; near the
    resolution of the dtype it is rounding noise) and ``sap/cost`` (time of the steps over that of their plain part).

    Args:
        model: Model, or its folder or Hub id.
        args: Options.
        references: Contrastive rows: a `ReferenceSet`, a name for `ReferenceSet.load`, a dataset with the columns
            prompt, unsafe and safe, or an iterable of (prompt, unsafe, safe).
        train_dataset: Rows of `training_rows`, or of any format that TRL takes.
        eval_dataset: The same, for the loss without probes.
        processing_class: Tokenizer, if it does not come with the model.
        peft_config: Adapter to train, as of `sap_lora`; without it all weights train.
        data_collator: As in TRL.
        compute_metrics: As in TRL.
        callbacks: As in TRL; what a step costs is always logged.
        optimizers: As in TRL.

    Raises:
        InputError: If the contrastive rows or the probe blocks cannot be used, or the weights are sharded.
        ModelError: If the model has nothing to train or no layer that the LoRA names.
    """

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
        self._upcoming: tuple[list[Mapping[str, Any]], Tensor | int | None] | None = None
        self._probes: dict[int, Tensor] = {}
        self._seconds = 0.0, 0.0

    def _contrastive_rows(self, references: References, tokenizer: Any) -> ContrastiveRows:  # noqa: ANN401
        sides = both_sides(references)
        length = min(self.args.contrastive_max_length, window_of(self.model.config))
        options = {"max_length": length, "seed": self.args.seed}
        if self.args.data_seed is not None:
            options["seed"] = self.args.data_seed
        given = ContrastiveRows.build(sides, tokenizer, **options)  # checks them before the model answers
        if self.args.refusals == "given":
            return given
        return ContrastiveRows.build(own_refusals(sides, self.model, tokenizer), tokenizer, **options)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Fetch the micro-batches of one optimizer step and keep them for its probes."""
        self._upcoming = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._upcoming

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One micro-batch: at the first of an optimizer step find V, then the ordinary pass with V in place."""
        start = self._now()
        if self._upcoming is not None:
            self._probes = self._find_probes(model, *self._upcoming)
            self._upcoming = None
        middle = self._now()
        with probing(self._blocks, self._probes):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        end = self._now()
        self._seconds = self._seconds[0] + end - start, self._seconds[1] + end - middle
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what SAP cost since the last line, and write the line."""
        whole, plain = self._seconds
        if plain:
            self._log("cost", whole / plain)
            self._seconds = 0.0, 0.0
        super().log(logs, start_time)

    def _find_probes(
        self, model: nn.Module, batches: list[Mapping[str, Any]], items: Tensor | int | None
    ) -> dict[int, Tensor]:
        """The probes V of one optimizer step, each of shape (d,); none where epsilon or beta is 0."""
        if not (self.args.epsilon and self.args.beta):
            return {}
        bare = self.accelerator.unwrap_model(model)
        bare.train()
        weights = [weight for weight in bare.parameters() if weight.requires_grad]
        direction = self._harmful_direction(bare, weights)
        with shifted(weights, direction, self.args.epsilon * flat_norm(weights)):
            there = self._probe_gradient(bare, batches, items)
        del direction
        here = self._probe_gradient(bare, batches, items)
        change = [a - b for a, b in zip(there, here, strict=True)]
        self._log("probe_gradient_change", flat_norm(change) / flat_norm(here).clamp(min=1e-30))
        probes = self._step(change)
        self._log("probe_norm", flat_norm(probes))
        return dict(zip(self._blocks, probes, strict=True))

    def _harmful_direction(self, model: nn.Module, weights: list[Tensor]) -> list[Tensor]:
        """The unit vector along g, in the weights' shapes; zero where g is zero.

        A model that refuses surely has every -log sigmoid near 0, and g under the smallest float. So the rows' weights
        sigmoid(-margin) are scaled by their greatest one, which leaves the direction as it is.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        index = self.state.global_step * world + rank
        safe, unsafe = self._contrastive.batch(index, self.args.contrastive_batch_size)
        with self._same_dropout(model), self.compute_loss_context_manager():
            margins = self._answer_log_prob(model, safe) - self._answer_log_prob(model, unsafe)
            margins = margins / self.args.temperature
        pull = functional.logsigmoid(-margins.detach())
        top = self.accelerator.gather(pull.max().reshape(1)).max()
        gradient = torch.autograd.grad(-((pull - top).exp() * margins).mean(), weights, allow_unused=True)
        found = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, gradient, strict=True)]
        found = self._mean(found)
        norm = flat_norm(found)
        self._log("safety_loss", -self.accelerator.gather(functional.logsigmoid(margins.detach())).mean())
        self._log("gradient_norm", norm * top.exp())
        if not torch.isfinite(norm):
            raise not_finite("the gradient of the safety loss", self.args, self.state)
        return [g.div_(norm.to(g.device)) if norm > 0 else g for g in found]

    def _probe_gradient(
        self, model: nn.Module, batches: list[Mapping[str, Any]], items: Tensor | int | None
    ) -> list[Tensor]:
        """grad_V of the useful loss over all micro-batches at V = 0, averaged over the processes."""
        zeros = {n: _zeros(block, self._width) for n, block in self._blocks.items()}
        total = [torch.zeros_like(zero) for zero in zeros.values()]
        with self._same_dropout(model), self._metrics_aside(), probing(self._blocks, zeros):
            for batch in batches:
                with self.compute_loss_context_manager():
                    loss = self.compute_loss(model, self._prepare_inputs(dict(batch)), num_items_in_batch=items)
                gradient = torch.autograd.grad(loss, list(zeros.values()))
                total = [t + g for t, g in zip(total, gradient, strict=True)]
        return self._mean(total)

    def _step(self, gradient: list[Tensor]) -> list[Tensor]:
        norm = flat_norm(gradient)
        if not torch.isfinite(norm):
            raise not_finite("the useful loss or its gradient", self.args, self.state)
        if self.args.probe_step == "sign" or norm == 0:
            return [self.args.beta * g.sign() for g in gradient]
        return [self.args.beta * g / norm.to(g.device) for g in gradient]

    def _answer_log_prob(self, model: nn.Module, batch: Batch) -> Tensor:
        """Log-probability of each row's answer, shape (rows,), summed over its tokens."""
        inputs = self._prepare_inputs(batch)
        states = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return answer_log_probs(model(**states, use_cache=False).logits, inputs["labels"])

    def _mean(self, tensors: list[Tensor]) -> list[Tensor]:
        """Mean over the processes."""
        if self.accelerator.num_processes == 1:
            return tensors
        return [self.accelerator.reduce(tensor, reduction="mean") for tensor in tensors]

    @contextmanager
    def _same_dropout(self, model: nn.Module) -> Iterator[None]:
        """Leave the random state as it was, so that the next pass draws the same numbers."""
        devices = sorted({w.device.index for w in model.parameters() if w.device.type == "cuda"})
        with torch.random.fork_rng(devices):
            yield

    @contextmanager
    def _metrics_aside(self) -> Iterator[None]:
        """Keep passes that train nothing out of TRL's means and token counts."""
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
        sharded = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
        if self.accelerator.distributed_type in sharded:
            raise InputError(
                f"SAP moves whole weights and cannot with {self.accelerator.distributed_type.value}: "
                "run it on one device or with DDP"
            )
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        if not trained:
            raise ModelError("the model has no trainable weights: give peft_config, or unfreeze it")
        dtypes = {weight.dtype for weight in self.model.parameters() if weight.is_floating_point()}
        grain = max(torch.finfo(dtype).eps for dtype in dtypes | ({torch.bfloat16} if args.bf16 else set()))
        if 0 < args.epsilon < grain / 8:
            warnings.warn(
                f"epsilon={args.epsilon} is below the resolution of this model's arithmetic ({grain:.1e}), so the "
                "probe follows rounding noise: load float32 weights with bf16=False, or set epsilon to about 0.002",
                stacklevel=3,
            )


@contextmanager
def loading_errors() -> Iterator[None]:
    """Turn complaints about missing target modules and damaged weights into errors of this package."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"the model's weights are damaged ({error}): download or save them again") from error
    except ValueError as error:
        if isinstance(error, ModelError) or "target modules" not in str(error).lower():
            raise
        raise ModelError(
            f"the model has no layer that the LoRA names: {error}; name its linear layers in target_modules"
        ) from error


def _zeros(block: nn.Module, width: int) -> Tensor:
    """A probe of zeros, shape (width,), float32 or wider, on the block's device."""
    weight = next(block.parameters())
    dtype = torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32
    return torch.zeros(width, dtype=dtype, device=weight.device, requires_grad=True)
