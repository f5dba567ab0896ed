"""PEFT adapters, merged into their base model on loading."""

import os
import re
import warnings
from pathlib import Path
from typing import Any, NotRequired

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's
from safetensors import SafetensorError, safe_open
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, find_adapter_config_file
from typing_extensions import TypedDict

from larf_curate.errors import ModelError
from larf_curate.extras import require
from larf_curate.models.hub import check_reachable
from larf_curate.records import FOREIGN, read_record

BLOCK = re.compile(r"\.(\d+)\.")
"""Index of a block in the name of a weight."""
EMBEDDING_NAMES = ("embed_tokens", "lm_head")
"""Embeddings that PEFT knows by name."""
EMBEDDINGS = re.compile(rf"\.({'|'.join(EMBEDDING_NAMES)})\.(base_layer\.)?weight$")
"""Weights of embeddings that an adapter stores in whole."""
COPY = re.compile(r"\.(modules_to_save|original_module)(?=\.weight$)")
"""What the name of an embedding has where PEFT stores it twice, as it does if the vocabulary was resized."""
RESIZED = (
    "if the vocabulary was resized for it, save it with save_embedding_layers=True, or merge it into the resized base "
    "model with merge_and_unload() and give the merged model without --adapter"
)


class AdapterConfig(TypedDict):
    """The fields of ``adapter_config.json``, which PEFT writes, that are read here; PEFT checks the others."""

    __pydantic_config__ = FOREIGN  # type: ignore[misc]

    peft_type: NotRequired[str | None]
    base_model_name_or_path: NotRequired[str | None]


def merge_adapter(model: Any, adapter: str, blocks: int) -> Any:  # noqa: ANN401  models of transformers
    """Merge an adapter into the weights of a model.

    Args:
        model: A causal language model, which may have been loaded with its first blocks only.
        adapter: Folder or Hub id of the adapter.
        blocks: Number of blocks of the model as loaded; weights of the adapter for later ones are not used.

    Returns:
        The model with changed weights, without PEFT's wrappers.

    Raises:
        MissingExtraError: If PEFT is not installed.
        ModelError: If the adapter is not one of this model, cannot be merged, or is not stored as safetensors.
    """
    peft = require("peft", extra="train")
    path, base = weights_of(adapter), "its base model"
    try:
        _read_config(path.parent / ADAPTER_CONFIG_NAME)  # PEFT would read any JSON, however deep
        config = peft.PeftConfig.from_pretrained(str(path.parent))
        base = config.base_model_name_or_path or base
        if config.is_prompt_learning or config.peft_type.value == "ADAPTION_PROMPT":
            raise ModelError(
                f"the adapter {adapter} is of the kind {config.peft_type.value}, which cannot be merged into weights: "
                "use a LoRA adapter"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # checked below
            _resize(model, path, adapter)
            wrapped = peft.PeftModel.from_pretrained(model, str(path.parent), config=config)
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
        stored = {name for name in names if COPY.sub("", name) not in names - {name}}
        own = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        # Some adapters also store embeddings of the base model, which replace the model's.
        _check_names(stored, own, own | set(wrapped.state_dict()), adapter, blocks)
        return wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        lines = [line.strip() for line in str(error).strip().splitlines()] or [type(error).__name__]
        # The first line of PyTorch's list of faults says nothing.
        first = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
        advice = f"; {RESIZED}" if "size mismatch" in first and re.search("embed|lm_head", first) else ""
        raise ModelError(
            f"the adapter {adapter} cannot be merged into this model: {first.rstrip('.')}; it is of {base}{advice}"
        ) from error


def _resize(model: Any, path: Path, adapter: str) -> None:  # noqa: ANN401  models of transformers
    """Give a model embeddings of as many tokens as its adapter was trained with, which PEFT then loads.

    Raises:
        ModelError: If the adapter stores only some of them: the others would be random.
    """
    sizes, size = embedding_sizes(path), model.get_input_embeddings().weight.shape[0]
    if all(stored == size for stored in sizes.values()):
        return
    head = model.get_output_embeddings()
    is_tied = head is None or head.weight is model.get_input_embeddings().weight
    if len(set(sizes.values())) > 1 or len(sizes) + is_tied < len(EMBEDDING_NAMES):
        raise ModelError(
            f"the adapter {adapter} has embeddings of another vocabulary than the base model's {size} tokens, "
            f"{' and '.join(f'{count} for {name}' for name, count in sizes.items())} alone: {RESIZED}"
        )
    model.resize_token_embeddings(min(sizes.values()), mean_resizing=False)


def embedding_sizes(path: Path) -> dict[str, int]:
    """Number of tokens of the embeddings that a file of an adapter stores in whole, by name."""
    with safe_open(path, framework="pt") as file:
        found = {name: EMBEDDINGS.search(name) for name in set(file.keys())}
        return {match[1]: file.get_slice(name).get_shape()[0] for name, match in sorted(found.items()) if match}


def saved_with(adapter: str, name: str) -> Path | None:
    """A file saved beside an adapter's weights, downloaded if it is on the Hub; None if there is none.

    Raises:
        ModelError: If it cannot be fetched.
    """
    try:
        path = Path(adapter, name) if Path(adapter).is_dir() else _download(adapter, name)
    except EntryNotFoundError:  # also if the Hub is not asked and the cache has none
        return None
    except (TransportError, HFValidationError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"cannot read {name} of the adapter {adapter}: {first}") from error
    return path if path.is_file() else None


def weights_of(adapter: str) -> Path:
    """File with the weights of an adapter, beside its ``adapter_config.json``; downloaded if it is on the Hub.

    Raises:
        ModelError: If there is none, or only one that would need pickle.
    """
    names = (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME)
    try:
        _, path = (Path(adapter, name) if Path(adapter).is_dir() else _download(adapter, name) for name in names)
    except (TransportError, HFValidationError, OSError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"no folder and no Hub repository {adapter!r} with {' and '.join(names)}: {first}") from error
    for name in names:
        if not (path.parent / name).is_file():
            raise ModelError(
                f"wanted an adapter of PEFT with {' and '.join(names)}, got {adapter} without {name}: save it with "
                "save_pretrained(…); adapters stored with pickle (.bin) are not loaded"
            )
    return path


def adapter_config_of(model: str, revision: str | None = None) -> str | None:
    """The config of the adapter that a folder or Hub id holds; None for models and where there is nothing.

    Raises:
        ModelError: If the Hub cannot be reached.
    """
    only_cache = check_reachable(model, revision)
    try:
        path: str | None = find_adapter_config_file(model, revision=revision, local_files_only=only_cache)
    except OSError:  # no such repository: loading the config reports it
        return None
    return path


def refuse_adapter(model: str, revision: str | None = None) -> None:
    """Check that a folder or Hub id is not that of an adapter, which `transformers` would load with its base model.

    Raises:
        ModelError: If it is; the message names the base model. Or if the Hub cannot be reached.
    """
    path = adapter_config_of(model, revision)
    if path is None:
        return
    base = _read_config(path).get("base_model_name_or_path")
    raise ModelError(
        f"{model} holds an adapter ({ADAPTER_CONFIG_NAME}): give its base model {base or 'instead'}, and the adapter "
        "with --adapter (adapter=…); or merge it with merge_and_unload(), and save that to a new folder"
    )


def is_available(adapter: str) -> bool:
    """Whether an adapter recorded in a profile may still be found: its folder exists, or it is a Hub id."""
    return Path(adapter).is_dir() or (not os.path.isabs(adapter) and "/" in adapter)


def _read_config(path: str | Path) -> AdapterConfig:
    return read_record(path, AdapterConfig, remedy="save the adapter again with save_pretrained(…)")


def _download(adapter: str, name: str) -> Path:
    return Path(hf_hub_download(adapter, name, local_files_only=check_reachable(adapter, name=name)))


def _check_names(stored: set[str], own: set[str], known: set[str], adapter: str, blocks: int) -> None:
    """Check that all weights of an adapter are known, those of deeper blocks excluded, and that none are missing."""
    needed = {name for name in stored if all(int(index) < blocks for index in BLOCK.findall(name)[:1])}
    for names, fault in ((needed - known, "do not belong to"), (own - stored, "are missing for")):
        if names:
            raise ModelError(
                f"{len(names)} weights of the adapter {adapter} {fault} this model, such as {min(names)}: give the "
                "base model that the adapter was trained on"
            )
