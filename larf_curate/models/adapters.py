"""PEFT adapters, merged into their base model on loading."""

import os
import re
import warnings
from pathlib import Path
from typing import Any, NotRequired

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
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
            wrapped = peft.PeftModel.from_pretrained(model, str(path.parent), config=config)
        with safe_open(path, framework="pt") as file:
            stored = set(file.keys())
        own = set(peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False))
        # Some adapters also store embeddings of the base model, which replace the model's.
        _check_names(stored, own, own | set(wrapped.state_dict()), adapter, blocks)
        return wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"the adapter {adapter} cannot be merged into this model: {first}; it is of {base}") from error


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


def refuse_adapter(model: str, revision: str | None = None) -> None:
    """Check that a folder or Hub id is not that of an adapter, which `transformers` would load with its base model.

    Raises:
        ModelError: If it is; the message names the base model. Or if the Hub cannot be reached.
    """
    only_cache = check_reachable(model, revision)
    try:
        path = find_adapter_config_file(model, revision=revision, local_files_only=only_cache)
    except OSError:  # no such repository: loading the config reports it
        return
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
