"""The model whose layers are sought: loaded with its head and tokenizer, and held still while it is probed."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import nn

from larf_curate.conversation.chat_template import Renderer, template_digest
from larf_curate.conversation.schemas import Row
from larf_curate.errors import InputError, ModelError
from larf_curate.models.blocks import decoder_blocks, projections
from larf_curate.models.devices import Dtype, check_device, resolve_device, resolve_dtype
from larf_curate.models.source import ModelSource, identify, load_causal_lm, load_tokenizer, public_name

SAMPLED = 1024
"""Values of each parameter that enter the digest of a model."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A causal language model with its tokenizer.

    Args:
        model: The model with its head, on its device.
        tokenizer: A fast tokenizer with a chat template.
        name: What to call the model in reports.

    Raises:
        ModelError: If there is no chat template, no blocks with projection weights are found, or some are recurrent.
    """

    model: Any
    tokenizer: Any
    name: str
    blocks: nn.ModuleList = field(init=False)

    def __post_init__(self) -> None:
        Renderer(self.tokenizer, self.window)  # refuses a tokenizer without chat template
        object.__setattr__(self, "blocks", decoder_blocks(self.model))
        for block in self.blocks:
            projections(block)
        if getattr(self.model, "_is_stateful", False) or not all(map(_attends, self._kinds())):
            raise ModelError(f"{self.name} has recurrent blocks: layers are found where every block is attention")

    def _kinds(self) -> list[str]:
        """What each block does, where the config says it."""
        return list(getattr(self.model.config.get_text_config(decoder=True), "layer_types", None) or [])

    @property
    def window(self) -> int:
        """Longest conversation in tokens."""
        config = self.model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", None) or 1 << 20)

    @property
    def device(self) -> torch.device:
        """Where the model's embeddings are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer, from the generation settings or else the tokenizer."""
        known = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        known = self.tokenizer.eos_token_id if known is None else known
        return frozenset([known] if isinstance(known, int) else known or [])

    @property
    def scaled_weights(self) -> list[list[str]]:
        """Names of the weights that are scaled, for each block."""
        return [list(projections(block)) for block in self.blocks]

    def ask(self, prompts: Sequence[str], *, room: int) -> list[list[int]]:
        """Tokenize prompts in the chat template, ready for the answer.

        Args:
            prompts: The user's words.
            room: Tokens of the answer that must fit behind each.

        Raises:
            InputError: If one is too long or the template refuses it.
        """
        texts = []
        for index, prompt in enumerate(prompts):
            messages = [{"role": "user", "content": prompt}]
            try:
                texts.append(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            except TemplateError as error:
                raise InputError(f"the model's chat template refuses prompt {index}: {error}") from error
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        for index, ids in enumerate(encoded):
            if len(ids) + room > self.window:
                raise InputError(
                    f"prompt {index} has {len(ids)} tokens, more than the model's {self.window} less {room}: shorten it"
                )
        return encoded

    def answers(self, rows: Sequence[Row]) -> list[tuple[list[int], int]]:
        """Token ids of conversations up to the end of their last answer, and where that answer starts."""
        rendered = [item.tokens for item in Renderer(self.tokenizer, self.window)(rows)]
        return [(item.ids[: item.turns[-1].end + 1], item.turns[-1].start) for item in rendered if item]

    def digest(self) -> str:
        """Hex SHA-256 of config, chat template, stop tokens and a sample of every weight."""
        text = f"{template_digest(self.tokenizer)} {sorted(self.stop_ids)} {self.device.type}"
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in ("_name_or_path", "dtype")}
        digest = hashlib.sha256((text + json.dumps(config, sort_keys=True, default=str)).encode())
        for name, weight in self.model.named_parameters():
            values = weight.detach().flatten()
            sample = values[:: max(1, values.numel() // SAMPLED)].float().cpu().numpy()
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode() + sample.tobytes())
        return digest.hexdigest()

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Put the model into evaluation mode without weight gradients, and afterwards back."""
        training = {module: module.training for module in self.model.modules()}
        wanted = {weight: weight.requires_grad for weight in self.model.parameters()}
        try:
            self.model.eval().requires_grad_(False)
            yield
        finally:
            for module, was in training.items():
                module.training = was
            for weight, was in wanted.items():
                weight.requires_grad_(was)


def _attends(kind: str) -> bool:
    return kind.endswith("attention") and not kind.startswith("linear")


def load_subject(
    model: Any,  # noqa: ANN401  a path, an id, or a model of transformers or PEFT
    *,
    tokenizer: Any = None,  # noqa: ANN401
    device: str | None = None,
    dtype: Dtype = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """Load a model with its head and its tokenizer, or take a loaded one as it is.

    Raises:
        InputError: If a loaded model comes without tokenizer and does not tell where it came from.
        ModelError: If it cannot be loaded, has no chat template, or there is no such device.
    """
    if not isinstance(model, str | Path):
        name = str(getattr(model.config, "_name_or_path", "") or "")
        if tokenizer is None and not name:
            raise InputError("wanted a tokenizer with a loaded model: find_safety_layers(model, tokenizer=…)")
        return Subject(model, tokenizer or load_tokenizer(ModelSource(model_id=name)), _public(name) or "model")
    device = resolve_device(device)
    check_device(device)
    source = ModelSource(model_id=str(model), revision=revision, trust_remote_code=trust_remote_code)
    loaded = load_causal_lm(source, getattr(torch, resolve_dtype(dtype, device)))
    return Subject(loaded.to(device), tokenizer or load_tokenizer(source), _public(str(model)))


def _public(model: str) -> str:
    """What reports call a model: the last part of a folder's path, a Hub id as it is."""
    return public_name(identify(model)) if model else ""
