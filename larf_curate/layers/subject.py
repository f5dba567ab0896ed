"""The model under study: loaded with its head and tokenizer, and frozen while its blocks are probed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import Row
from larf_curate.conversation.templates import template_digest
from larf_curate.conversation.thoughts import AnswerDecoder, thought_of_template
from larf_curate.errors import ConversationError, InputError, ModelError
from larf_curate.models.blocks import decoder_blocks, projections
from larf_curate.models.devices import check_device, resolve_device, resolve_dtype
from larf_curate.models.dtypes import Dtype
from larf_curate.models.generation import stop_ids, window_of
from larf_curate.models.source import ModelSource, identify, load_causal_lm, load_tokenizer, public_name

SAMPLED_VALUES = 1024
"""Number of values of each parameter that enter the digest of a model."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A causal language model with its tokenizer.

    Args:
        model: The model with its head, on its device.
        tokenizer: A fast tokenizer with a chat template.
        name: Name of the model in reports.
        day: Day of dates that the chat template writes: one for the whole run, which may end tomorrow.

    Raises:
        ModelError: If there is no chat template, no block with projection weights is found, or a block is recurrent.
    """

    model: Any
    tokenizer: Any
    name: str
    day: date = field(default_factory=date.today)
    blocks: nn.ModuleList = field(init=False)

    def __post_init__(self) -> None:
        _ = self.renderer  # raises if the tokenizer has no chat template
        object.__setattr__(self, "blocks", decoder_blocks(self.model))
        for block in self.blocks:
            projections(block)
        if getattr(self.model, "_is_stateful", False) or not all(map(_is_attention, self._layer_types())):
            raise ModelError(
                f"{self.name} has recurrent blocks: safety layers can only be found in models whose blocks all use "
                "attention"
            )

    def _layer_types(self) -> list[str]:
        """Type of each block as given in the config; empty if the config does not give it."""
        return list(getattr(self.model.config.get_text_config(decoder=True), "layer_types", None) or [])

    @property
    def window(self) -> int:
        """Context window in tokens; see `window_of`."""
        return window_of(self.model.config)

    @cached_property
    def renderer(self) -> Renderer:
        """Renders rows with the model's chat template."""
        return Renderer(self.tokenizer, self.window, day=self.day)

    @property
    def device(self) -> torch.device:
        """Device of the model's first parameters, the embeddings."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of all tokens that end an answer; see `larf_curate.models.generation.stop_ids`."""
        return frozenset(stop_ids(self.model, self.tokenizer))

    @cached_property
    def decode_answers(self) -> AnswerDecoder:
        """Decodes answers; the marks of thoughts are kept."""
        return AnswerDecoder(self.tokenizer)

    @cached_property
    def opened_thought(self) -> str:
        """The mark of a thought that the generation prompt opens, with which each answer then begins; else empty."""
        return thought_of_template(self.tokenizer)

    @property
    def scaled_weights(self) -> list[list[str]]:
        """Names of the projection weights of each block."""
        return [list(projections(block)) for block in self.blocks]

    def encode_prompts(self, prompts: Sequence[str], *, new_tokens: int) -> list[list[int]]:
        """Tokenize prompts in the chat template, with the generation prompt.

        Args:
            prompts: User messages.
            new_tokens: Tokens of the answer that must fit into the context window after each prompt.

        Returns:
            Token ids of each prompt.

        Raises:
            InputError: If a prompt is too long or the template rejects it.
        """
        texts = []
        for index, prompt in enumerate(prompts):
            messages = [{"role": "user", "content": prompt}]
            try:
                texts.append(self.renderer.template(messages, generation_prompt=True))
            except ConversationError as error:
                raise InputError(f"prompt {index}: {error}; change or remove it") from error
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for index, ids in enumerate(encoded):
            if len(ids) + new_tokens > self.window:
                raise InputError(
                    f"prompt {index} has {len(ids)} tokens, with {new_tokens} for the answer more than the context "
                    f"window of {self.window}: shorten it"
                )
        return encoded

    def encode_answers(self, rows: Sequence[Row]) -> list[tuple[list[int], int]]:
        """Tokenize conversations up to the end of their last answer; rows that cannot be tokenized are skipped.

        Returns:
            Token ids, and the index at which the last answer starts, of each conversation.
        """
        rendered = [item.tokens for item in self.renderer(rows)]
        return [(item.ids[: item.turns[-1].end + 1], item.turns[-1].start) for item in rendered if item]

    def digest(self) -> str:
        """Hex SHA-256 of config, chat template, stop tokens, device type and a sample of every weight."""
        text = f"{template_digest(self.tokenizer)} {sorted(self.stop_ids)} {self.device.type}"
        # A copy in another folder is the same model; the dtypes of the weights are hashed below.
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in ("_name_or_path", "dtype")}
        digest = hashlib.sha256((text + json.dumps(config, sort_keys=True, default=str)).encode())
        for name, weight in self.model.named_parameters():
            values = weight.detach().flatten()
            sample = values[:: max(1, values.numel() // SAMPLED_VALUES)].float().cpu().numpy()
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + sample.tobytes())
        return digest.hexdigest()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the model in evaluation mode without weight gradients, and restore both settings afterwards."""
        training = {module: module.training for module in self.model.modules()}
        requires_grad = {weight: weight.requires_grad for weight in self.model.parameters()}
        try:
            self.model.eval().requires_grad_(False)
            yield
        finally:
            for module, was in training.items():
                module.training = was
            for weight, was in requires_grad.items():
                weight.requires_grad_(was)


def _is_attention(layer_type: str) -> bool:
    """Whether a layer type is softmax attention, full or in a window; linear attention is recurrent."""
    return layer_type.endswith("attention") and not layer_type.startswith("linear")


def load_subject(
    model: Any,  # noqa: ANN401  a path, an id, or a model of transformers or PEFT
    *,
    tokenizer: Any = None,  # noqa: ANN401
    device: str | None = None,
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a model with its head and its tokenizer, or use a loaded one as it is.

    Args:
        model: A local folder, a Hub id, or a loaded causal language model.
        tokenizer: Its tokenizer. Default: loaded from the model's folder or Hub id.
        device: A torch device. Default: the first available accelerator; ignored for a loaded model, as is ``dtype``.
        dtype: ``auto`` is bfloat16 where the hardware supports it natively, float32 elsewhere.
        revision: Commit, tag or branch of a Hub id.
        trust_remote_code: Whether code from the model's repository may run.

    Raises:
        InputError: If a loaded model is given without a tokenizer and does not record its folder or Hub id.
        ModelError: If it cannot be loaded, has no chat template, or the device is not available.
    """
    if not isinstance(model, str | Path):
        name = str(getattr(model.config, "_name_or_path", "") or "")
        if tokenizer is None and not name:
            raise InputError("wanted a tokenizer with a loaded model: find_safety_layers(model, tokenizer=…)")
        return Subject(model, tokenizer or load_tokenizer(ModelSource(model_id=name)), _report_name(name) or "model")
    device = resolve_device(device)
    check_device(device)
    source = ModelSource(model_id=str(model), revision=revision, trust_remote_code=trust_remote_code)
    loaded = load_causal_lm(source, getattr(torch, resolve_dtype(dtype, device)))
    return Subject(loaded.to(device), tokenizer or load_tokenizer(source), _report_name(str(model)))


def _report_name(model: str) -> str:
    """Name of a model in reports: the last part of a folder's path; a Hub id is unchanged."""
    return public_name(identify(model)) if model else ""
