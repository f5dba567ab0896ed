"""What the numbers of a model depend on: the bytes of its files, and the software and hardware that run it."""

import hashlib
import json
import os
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers

from larf_curate.models.adapters import weights_of
from larf_curate.models.devices import default_batch_tokens, supports_flash_attention
from larf_curate.models.source import ModelSource, load_config
from larf_curate.verification import remembered_sha256
from larf_curate.version import __version__

CODE = ("conversation", "layers", "models")
"""Parts of this package whose code the numbers depend on."""
SETTINGS = ("ONEDNN_", "DNNL_", "MKL_", "CUBLAS_", "NVIDIA_TF32_")
"""Beginnings of the names of environment variables by which libraries of linear algebra round otherwise."""


def model_digest(source: ModelSource, device: str) -> str | None:
    """Identify everything that a model's states depend on to the last bit, except the tokens.

    Every byte of the model's files counts, unlike in `larf_curate.models.source.weights_digest`: an edit of a single
    matrix must be noticed. A file is read once, and again only if it changes.

    Args:
        source: The model, its dtype resolved.
        device: The torch device that runs it.

    Returns:
        A hex SHA-256; None if the commit of a Hub id is unknown, or code of a repository may run, perhaps of another
        one than the model's.

    Raises:
        ModelError: If the config or the adapter cannot be loaded.
        OSError: If a file cannot be read.
    """
    files = None if source.trust_remote_code else _files_digest(source)
    if files is None:
        return None
    settings = {"dtype": source.dtype, "strip_prefix": source.strip_prefix, "files": files}
    text = json.dumps({**settings, **_environment(source, device)}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _files_digest(source: ModelSource) -> list[list[str]] | None:
    """Digest of every file of a model and its adapter; the commit of a Hub id, or None if it is unknown."""
    folder = Path(source.model_id)
    commit = None if folder.is_dir() else getattr(load_config(source), "_commit_hash", None)
    if commit is None and not folder.is_dir():
        return None
    found = [[source.model_id, commit]] if commit else _digests(folder)
    return [*found, *(_digests(weights_of(source.adapter).parent) if source.adapter else [])]


def _digests(folder: Path) -> list[list[str]]:
    """Name and digest of the files in a folder, without hidden ones, and of those below it that an index names."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    indices = [path for path in files if path.name.endswith(".index.json")]
    named = {folder / name for path in indices for name in _shards(path)}
    every = [*files, *sorted(path for path in named - set(files) if path.is_file())]
    return [[str(path.relative_to(folder)), remembered_sha256(path)] for path in every]


def _shards(index: Path) -> set[str]:
    """Files of weights that an index names; none if it is damaged, which loading reports."""
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


@cache
def _code_digest() -> str:
    """Digest of the code of this package that renders and runs conversations, which may change without its version."""
    package = Path(__file__).parents[1]
    files = sorted(path for name in CODE for path in (package / name).glob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _environment(source: ModelSource, device: str) -> dict[str, Any]:
    """Versions and hardware, all of which can change the last digits."""
    accelerator = torch.device(device)
    name = torch.cuda.get_device_name(accelerator) if accelerator.type == "cuda" else accelerator.type
    return {
        "package": f"{__version__} {_code_digest()}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": _peft_version() if source.adapter else None,
        "device": name,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith(SETTINGS)},
        "batch_tokens": default_batch_tokens(accelerator.type),
        "flash_attention": supports_flash_attention(device, source.dtype),
    }


def _peft_version() -> str | None:
    """Version of PEFT, which merges adapters; None if it is not installed, which loading reports."""
    try:
        return version("peft")
    except PackageNotFoundError:
        return None
