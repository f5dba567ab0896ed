"""State readers: a model loaded up to the deepest requested layer, with its optimizations checked for exactness."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from larf_curate.conversation.chat_template import Renderer
from larf_curate.conversation.schemas import with_separator
from larf_curate.conversation.templates import Tokenizer
from larf_curate.conversation.truncation import Tokens, Turn
from larf_curate.errors import InputError, LarfCurateError, ModelError
from larf_curate.models.devices import check_device, resolve_dtype, supports_flash_attention
from larf_curate.models.hidden_states import DEFAULT_BATCH_TOKENS, DEFAULT_MAX_LENGTH, StateReader
from larf_curate.models.source import (
    ModelSource,
    load_causal_lm,
    load_config,
    load_decoder,
    load_tokenizer,
    num_layers,
)
from larf_curate.models.threads import worker_threads
from larf_curate.models.token_trimming import Shortcut

Loaded = TypeVar("Loaded")
FORWARD_ERRORS = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)
"""Errors of a forward pass that a model does not support."""


def load_reader(
    source: ModelSource,
    layers: tuple[int, ...],
    *,
    device: str,
    max_length: int = DEFAULT_MAX_LENGTH,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> StateReader:
    """Load a model up to the deepest requested layer; the most recently loaded one is cached.

    Args:
        source: The model.
        layers: 0-based decoder blocks.
        device: A torch device, such as ``cpu``, ``cuda:1`` or ``mps``.
        max_length: Longest conversation in tokens.
        batch_tokens: Most tokens per batch; 0 for the device's default.

    Raises:
        ModelError: If the model cannot be loaded.
        InputError: If it does not have these layers.
    """
    check_device(device)
    limit_threads()
    return _load_reader(source, layers, device, max_length, batch_tokens)


def limit_threads() -> None:
    """Let a worker process compute with its share of the cores; see `worker_threads`."""
    if threads := worker_threads():
        torch.set_num_threads(threads)


def load_renderer(
    source: ModelSource, *, max_length: int = DEFAULT_MAX_LENGTH, columns: Mapping[str, str] | None = None
) -> Renderer:
    """Load only a model's tokenizer, and make the renderer of rows that its reader has.

    Args:
        source: The model.
        max_length: Longest conversation in tokens.
        columns: Column names by role; default: inferred from the rows.

    Raises:
        ModelError: If the config or the tokenizer cannot be loaded, or there is no usable chat template.
    """
    config = load_config(source).get_text_config(decoder=True)
    limit = min(max_length, _max_positions(config, max_length))
    return Renderer(load_tokenizer(source), limit, with_separator(columns, source.input_separator), day=source.day)


def forget_reader() -> None:
    """Clear the cached reader and free its memory, for instance before another model is loaded."""
    _load_reader.cache_clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@lru_cache(maxsize=1)
def _load_reader(
    source: ModelSource, layers: tuple[int, ...], device: str, max_length: int, batch_tokens: int
) -> StateReader:
    config = load_config(source)
    check_layers(layers, num_layers(config, source), source.model_id)
    tokenizer, dtype = load_tokenizer(source), getattr(torch, resolve_dtype(source.dtype, device))

    def load(attention: str | None) -> StateReader:
        decoder = load_decoder(source, config, max(layers) + 1, dtype, attention=attention).to(device)
        return _reader(decoder, tokenizer, source, layers, _commit(config), max_length, batch_tokens)

    return _with_fastest_attention(load, source, device)


def load_reader_with_head(
    source: ModelSource, layers: tuple[int, ...], *, device: str, max_length: int = DEFAULT_MAX_LENGTH
) -> tuple[StateReader, Any]:
    """Load a complete model once, both to read states and to run it with its head.

    Args:
        source: The model.
        layers: 0-based decoder blocks to read; later ones are run only for the head.
        device: A torch device.
        max_length: Longest conversation in tokens.

    Returns:
        A reader of these blocks, and the causal language model that it shares its weights with.

    Raises:
        ModelError: If the model cannot be loaded with its head.
    """
    check_device(device)
    limit_threads()
    forget_reader()  # two models might not fit into memory
    tokenizer, dtype = load_tokenizer(source), getattr(torch, resolve_dtype(source.dtype, device))

    def load(attention: str | None) -> tuple[StateReader, Any]:
        model = load_causal_lm(source, dtype, attention=attention).to(device)
        commit = _commit(model.config)
        reader = _reader(model.get_decoder(), tokenizer, source, layers, commit, max_length, DEFAULT_BATCH_TOKENS)
        return reader, model

    return _with_fastest_attention(load, source, device)


def _with_fastest_attention(load: Callable[[str | None], Loaded], source: ModelSource, device: str) -> Loaded:
    """Load with FlashAttention if it is installed and the model supports it, else with the model's default."""
    if supports_flash_attention(device, source.dtype):
        with suppress(ModelError):  # not every architecture supports it
            return load("flash_attention_2")
    return load(None)


def _reader(
    decoder: Any,  # noqa: ANN401  any decoder of transformers
    tokenizer: Tokenizer,
    source: ModelSource,
    layers: tuple[int, ...],
    revision: str | None,
    max_length: int,
    batch_tokens: int,
) -> StateReader:
    """Make a reader of a loaded decoder, with the optimizations that are exact for it."""
    reader = StateReader(
        model=decoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        layers=layers,
        revision=revision,
        max_length=min(max_length, _max_positions(decoder.config, max_length)),
        batch_tokens=batch_tokens,
        day=source.day,
        input_separator=source.input_separator,
    )
    reader.shortcuts = exact_shortcuts(reader)
    return reader


def commit_of(source: ModelSource) -> str | None:
    """Commit of a model's Hub id; None for a folder."""
    return _commit(load_config(source))


def _commit(config: Any) -> str | None:  # noqa: ANN401  any config of transformers
    """Commit of the Hub that a config was loaded from; None if it was loaded from a folder."""
    return getattr(config, "_commit_hash", None)


def exact_shortcuts(reader: StateReader) -> frozenset[Shortcut]:
    """Find the optimizations that do not change the states of a model, on two synthetic conversations.

    Args:
        reader: A reader of the model.

    Returns:
        The reader's optimizations without those that the architecture does not support.

    Raises:
        ModelError: If the states of a conversation depend on the padding after it, or the model does not run.
    """
    # The two share a prefix and differ in length, so that prefix cache, trimming and padding all take effect.
    vocabulary = reader.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = [index * 7919 % vocabulary for index in range(20)]
    probes = [Tokens(ids, (Turn(10, 19),)), Tokens([*ids[:8], *ids[4:9]], (Turn(9, 12),))]

    # Half precision is off by about 0.01, and so are kernels of quantised weights.
    is_exact = reader.model.dtype == torch.float32 and not reader.is_quantised
    tolerance = 0.001 if is_exact else 0.05

    def states(conversations: Sequence[Tokens], shortcuts: frozenset[Shortcut]) -> NDArray[np.float32]:
        variant = replace(reader, shortcuts=shortcuts)
        return np.concatenate(list(variant(conversations, ("last", "prompt", "mean")).values()), axis=1)

    try:
        expected = np.concatenate([states([probe], frozenset()) for probe in probes])
        if not _equal_up_to_rounding(states(probes, frozenset()), expected, tolerance):
            raise ModelError(
                f"the states of {type(reader.model).__name__} depend on later tokens: only causal decoder models can "
                "be read, use one of these"
            )
    except FORWARD_ERRORS as error:
        if isinstance(error, LarfCurateError):
            raise
        raise ModelError(f"cannot read states from {type(reader.model).__name__}: {error}") from error

    def exact(shortcuts: frozenset[Shortcut]) -> bool:
        try:
            return _equal_up_to_rounding(states(probes, shortcuts), expected, tolerance)
        except FORWARD_ERRORS:
            return False

    if exact(reader.shortcuts):
        return reader.shortcuts
    return frozenset(shortcut for shortcut in reader.shortcuts if exact(frozenset({shortcut})))


def _equal_up_to_rounding(got: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float) -> bool:
    """Whether the mean relative error is below the tolerance; wrong states have errors of about 1."""
    with np.errstate(all="ignore"):
        errors = np.linalg.norm(got - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    errors = errors[np.isfinite(errors)]  # an overflow is an error of a row, not of the model
    return not errors.size or float(errors.mean()) < tolerance


def _max_positions(config: Any, default: int) -> int:  # noqa: ANN401  any config of transformers
    """Most tokens that a model reads with one set of rotary frequencies.

    LongRoPE switches to other frequencies for a whole batch once one row is longer than the original window: a row's
    states would then depend on the other rows of its batch.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings"):
        return int(rope["original_max_position_embeddings"])
    return getattr(config, "max_position_embeddings", None) or default


def check_layers(layers: Sequence[int], count: int, model_id: str) -> None:
    """Check that a model of ``count`` blocks has these layers, at least one.

    Raises:
        InputError: If it does not.
    """
    if not layers or not all(0 <= layer < count for layer in layers):
        raise InputError(f"wanted layers from 0 to {count - 1} for {model_id}, got {list(layers)}")
