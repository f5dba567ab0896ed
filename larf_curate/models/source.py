"""Model sources, and their parts as loaded by `transformers`: config, tokenizer, decoder, causal language model."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError

from larf_curate.conversation.templates import Tokenizer
from larf_curate.errors import ModelError
from larf_curate.files import sampled_digest
from larf_curate.models.blocks import has_same_blocks, truncate_config
from larf_curate.models.dtypes import Dtype


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model to load, and how.

    Args:
        model_id: A local folder or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 where the hardware supports it natively,
            else float32.
        chat_template: A Jinja chat template to use instead of the tokenizer's own.
        trust_remote_code: Whether code from the model's repository may run.
    """

    model_id: str
    revision: str | None = None
    dtype: Dtype = "auto"
    chat_template: str | None = None
    trust_remote_code: bool = False

    @property
    def loading(self) -> dict[str, Any]:
        """Keyword arguments of every ``from_pretrained``."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load a tokenizer; the source's chat template, if any, replaces its own.

    Raises:
        ModelError: If the tokenizer cannot be loaded.
    """
    tokenizer = _load(transformers.AutoTokenizer, source)
    if source.chat_template is not None:
        tokenizer.chat_template = source.chat_template
    return tokenizer  # type: ignore[no-any-return]


def load_config(source: ModelSource) -> Any:  # noqa: ANN401  any config of transformers
    """Load a model's config.

    Raises:
        ModelError: If it cannot be loaded, or the folder holds an adapter, which has no config of its own.
    """
    folder = Path(source.model_id)
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ModelError(
            f"{source.model_id} is an adapter: merge it into its model with merge_and_unload() and save that first"
        )
    return _load(transformers.AutoConfig, source)


def load_decoder(
    source: ModelSource,
    config: Any,  # noqa: ANN401  any config of transformers
    count: int,
    dtype: torch.dtype,
    *,
    attention: str | None = None,
) -> Any:  # noqa: ANN401
    """Load at least the first blocks of a model, without its head and without vision or audio encoders.

    Args:
        source: The model.
        config: Its config.
        count: Number of blocks that are needed.
        dtype: Dtype of the weights.
        attention: Attention implementation of `transformers`; default: the model's.

    Raises:
        ModelError: If the model cannot be loaded.
    """
    truncated = truncate_config(config, count)
    if not has_same_blocks(config, truncated, trust_remote_code=source.trust_remote_code):
        truncated = config  # the first blocks depend on the number of blocks, so that all must be loaded
    options = {"attn_implementation": attention} if attention else {}
    model = _load(transformers.AutoModel, source, config=truncated, dtype=dtype, **options)
    return model.get_decoder()


def load_causal_lm(source: ModelSource, dtype: torch.dtype | Literal["auto"], *, attention: str | None = None) -> Any:  # noqa: ANN401
    """Load a complete model with its head, or an adapter together with its base model.

    Args:
        source: The model; its dtype is ignored.
        dtype: Dtype of the weights; ``auto`` for that of the files.
        attention: Attention implementation of `transformers`; default: the model's.

    Raises:
        ModelError: If the model cannot be loaded, or its files lack weights, which would be initialised randomly.
    """
    options = {"attn_implementation": attention} if attention else {}
    model, info = _load(transformers.AutoModelForCausalLM, source, dtype=dtype, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{source.model_id} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}: "
            "use a model that was saved with its head"
        )
    return model


def weights_digest(source: ModelSource) -> str | None:
    """Identify the weights of a model, so that a model with the same name but other weights can be detected.

    Args:
        source: The model; for a Hub id the commit is looked up.

    Returns:
        For a folder, a hex digest of samples of its weight files; for a Hub id, the commit, or None if unknown.
    """
    folder = Path(source.model_id)  # hashing all weights of a large model would take minutes
    if not folder.is_dir():
        return getattr(load_config(source), "_commit_hash", None)
    return sampled_digest(sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]))


def count_layers(source: ModelSource) -> int:
    """Number of decoder blocks of a model, from its config alone."""
    return num_layers(load_config(source), source)


def num_layers(config: Any, source: ModelSource) -> int:  # noqa: ANN401  any config of transformers
    """Number of decoder blocks given in a config.

    Raises:
        ModelError: If the model is not a decoder-only model.
    """
    count = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    if config.is_encoder_decoder or not isinstance(count, int):
        raise ModelError(f"wanted a decoder model, got {config.model_type!r} in {source.model_id!r}: use a chat model")
    return count


def _load(kind: Any, source: ModelSource, **options: object) -> Any:  # noqa: ANN401  an Auto class of transformers
    """Call ``from_pretrained`` with one-line errors and without its report on the weights that are not loaded."""
    try:
        with quiet():
            return kind.from_pretrained(source.model_id, **source.loading, **options)
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "folder" if os.path.isdir(source.model_id) else "Hub id"
        raise ModelError(f"cannot load {kind.__name__} from the {where} {source.model_id!r}: {first}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence loading reports and progress bars of `transformers` inside a ``with`` block."""
    reports = transformers.utils.logging
    level, bars = reports.get_verbosity(), reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    try:
        yield
    finally:
        reports.set_verbosity(level)
        if bars:
            reports.enable_progress_bar()


def identify(model: str | Path) -> str:
    """Resolve a model: a folder to its absolute path, so that every process finds it; a Hub id is unchanged."""
    return str(Path(model).resolve()) if Path(model).is_dir() else str(model)


def public_name(name: str) -> str:
    """Name for reports and uploads: the last part of a local path, which reveals no folders; Hub ids are unchanged."""
    return Path(name).name if os.path.isabs(name) else name
