"""Likelihood of answers under a causal language model, without the logits of all positions at once.

Only the positions that predict an answer's token go through the language-model head, a few at a time: the logits of a
whole batch, (rows, tokens, vocabulary), would need more memory than all else.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from larf_curate.conversation.training_rows import IGNORED

POSITIONS = 128
"""Number of positions whose logits are in memory at the same time."""


class Predictions(NamedTuple):
    """What a model predicts at some positions, each of shape (n,); only ``log_probs`` has a gradient.

    Args:
        log_probs: Log-probability of the target token in nats, at most 0; float32 or wider.
        entropy: Entropy of the predicted distribution in nats, at least 0.
        is_top1: Whether the target is the most probable token.
    """

    log_probs: Tensor
    entropy: Tensor
    is_top1: Tensor


class AnswerHead:
    """The part of a causal language model after its decoder, applied to chosen positions.

    It is the model's own ``forward``, with the decoder's output put in place of the decoder: scaling and softcapping of
    logits, biases and adapters are those of the model, whatever its architecture. That this gives the model's logits is
    checked once, on a few tokens.

    Args:
        model: A causal language model of transformers, or of peft around one.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401  transformers has no types
        self.model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        # Prompt learning adds tokens around the decoder, which only peft's own forward knows.
        self._measures = True
        learned_prompt = any(c.is_prompt_learning for c in getattr(model, "peft_config", {}).values())
        self.splits = not learned_prompt and self._reproduces_logits()

    @contextmanager
    def unmeasured(self) -> Iterator[None]:
        """Leave out what is only for metrics: entropies are 0, and no target is the most probable token."""
        self._measures = False
        try:
            yield
        finally:
            self._measures = True

    def decode(self, **inputs: Any) -> Any:  # noqa: ANN401
        """The decoder's output for the inputs of the model, with ``last_hidden_state`` of shape (rows, tokens, d)."""
        return self.model.base_model(**inputs, use_cache=False)

    def predictions(self, output: Any, hidden: Tensor, targets: Tensor) -> Predictions:  # noqa: ANN401
        """Predict the target tokens at chosen positions.

        Args:
            output: Output of `decode`.
            hidden: Its hidden states at the positions, shape (n, d).
            targets: Token ids, shape (n,).
        """
        project = partial(self._logits, output)
        again = partial(checkpoint, _predict, project, self._measures, use_reentrant=False)
        predict = again if self._is_trained() else _stored(project, self._measures)
        parts = [
            predict(*few) for few in zip(torch.split(hidden, POSITIONS), torch.split(targets, POSITIONS), strict=True)
        ]
        return Predictions(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _is_trained(self) -> bool:
        """Whether the head itself gets a gradient: then its logits are computed again in the backward pass."""
        if not torch.is_grad_enabled():
            return False
        decoder = f"{self.model.base_model_prefix}."
        named = self.model.named_parameters(remove_duplicate=False)
        return any(weight.requires_grad for name, weight in named if not name.startswith(decoder))

    def _logits(self, output: Any, hidden: Tensor) -> Tensor:  # noqa: ANN401
        """Logits at some positions, shape (n, vocabulary), from their hidden states, shape (n, d)."""
        decoder = self.model.base_model
        given = type(output)(**{**output, "last_hidden_state": hidden[None]})
        before = decoder.__dict__.get("forward")
        decoder.forward = lambda *_args, **_options: given
        try:
            # The class's forward: the instance's may be one that TRL or accelerate put in its place.
            # Only the number of the input ids matters: Gemma 4 compares it with that of the states.
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            logits: Tensor = type(self.model).forward(self.model, input_ids=ids, use_cache=False).logits
            return logits[0]
        finally:
            del decoder.forward
            if before is not None:
                decoder.forward = before

    @torch.no_grad()
    def _reproduces_logits(self) -> bool:
        """Whether the logits of a few tokens are those of the whole model."""
        if self.model.base_model is self.model:
            return False
        ids = torch.arange(1, 5, device=self.model.device)[None]
        training = self.model.training
        self.model.eval()
        try:
            output = self.decode(input_ids=ids, attention_mask=torch.ones_like(ids))
            if not isinstance(output, Mapping) or "last_hidden_state" not in output:
                return False
            ours = self._logits(output, output["last_hidden_state"][0])
            model = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError):
            return False  # the head needs more than the decoder's output
        finally:
            self.model.train(training)
        return ours.shape == model.shape and torch.allclose(ours.float(), model.float(), rtol=1e-2, atol=1e-3)


class AnswerLikelihood:
    """Computes log-probabilities of answers, for evaluation.

    Args:
        model: A causal language model of transformers.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        self._model, self._head = model, AnswerHead(model)

    @torch.no_grad()
    def __call__(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        """Log-probability of each row's answer: the sum over its tokens, in nats; at most 0.

        Args:
            labels: Token ids of the answers, `IGNORED` elsewhere, shape (rows, tokens), not shifted.
            **inputs: ``input_ids`` and what else the model takes.

        Returns:
            Shape (rows,), float32 or wider.
        """
        # The state at a position predicts the next token.
        row, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        targets = labels[row, position + 1]
        if self._head.splits:
            output = self._head.decode(**inputs)
            found = self._head.predictions(output, output.last_hidden_state[row, position], targets).log_probs
        else:
            logits = self._model(**inputs, use_cache=False).logits[row, position]
            found = -functional.cross_entropy(_widened(logits), targets, reduction="none")
        return found.new_zeros(len(labels)).index_add(0, row, found)


class _Stored(torch.autograd.Function):
    """`_predict` whose backward pass needs no logits: the gradient of each position is computed beforehand."""

    @staticmethod
    def forward(ctx: Any, project: Any, measures: bool, hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        with torch.enable_grad():
            leaf = hidden.detach().requires_grad_()
            logits = project(leaf)
        wide = _widened(logits.detach())
        log_probs = wide.log_softmax(-1)
        likely = log_probs.gather(1, targets[:, None])[:, 0]
        probs = log_probs.exp_()
        found = _measured(wide, likely, probs, targets) if measures else _unmeasured(likely)
        # d log p(target) / d logits = onehot(target) - p
        slope = probs.neg_().scatter_add_(1, targets[:, None], torch.ones_like(probs[:, :1]))
        ctx.save_for_backward(torch.autograd.grad(logits, leaf, slope.to(logits.dtype))[0])
        ctx.mark_non_differentiable(found.entropy, found.is_top1)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, *_: object) -> tuple[None, None, Tensor, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return None, None, (gradient * slope[:, None]).to(gradient.dtype), None


def _stored(project: Any, measures: bool) -> Any:  # noqa: ANN401  a function
    def predict(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        if not (torch.is_grad_enabled() and hidden.requires_grad):
            return _predict(project, measures, hidden, targets)
        found: tuple[Tensor, ...] = _Stored.apply(project, measures, hidden, targets)  # type: ignore[no-untyped-call]
        return found

    return predict


def _predict(project: Any, measures: bool, hidden: Tensor, targets: Tensor) -> Predictions:  # noqa: ANN401
    """`Predictions` at a few positions, from their logits."""
    wide = _widened(project(hidden))
    log_probs = wide.log_softmax(-1)
    likely = log_probs.gather(1, targets[:, None])[:, 0]
    return _measured(wide.detach(), likely, log_probs.detach().exp(), targets) if measures else _unmeasured(likely)


def _measured(logits: Tensor, likely: Tensor, probs: Tensor, targets: Tensor) -> Predictions:
    """`Predictions` from logits and probabilities, each (n, vocabulary), and log-probabilities of the targets."""
    # The entropy is the mean of normalizer - logit: this needs no log-probabilities of all tokens.
    normalizer = logits.gather(1, targets[:, None])[:, 0] - likely.detach()
    return Predictions(likely, normalizer - torch.linalg.vecdot(probs, logits), logits.argmax(-1) == targets)


def _unmeasured(likely: Tensor) -> Predictions:
    zeros = torch.zeros_like(likely)
    return Predictions(likely, zeros, zeros.bool())


def _widened(logits: Tensor) -> Tensor:
    """Logits in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
