"""Model sources, and their parts as loaded by `transformers`: config, tokenizer, decoder, causal language model."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CHAT_TEMPLATE_FILE, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, cached_file

from larf_curate.conversation.templates import Tokenizer
from larf_curate.errors import ModelError
from larf_curate.files import sampled_digest
from larf_curate.models.adapters import (
    RESIZED,
    adapter_config_of,
    embedding_sizes,
    merge_adapter,
    refuse_adapter,
    saved_with,
    weights_of,
)
from larf_curate.models.blocks import decoder_blocks, has_same_blocks, truncate_config
from larf_curate.models.checkpoint import check_weights, renaming
from larf_curate.models.dtypes import Dtype
from larf_curate.models.hidden_states import is_out_of_memory
from larf_curate.models.hub import CONFIG_FILE, cache_only, check_reachable
from larf_curate.models.quantisation import dequantise, missing_for

logger = logging.getLogger(__name__)
ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst")
"""Endings of files of references, which `public_name` takes for local ones."""
SPEAKING = (OSError, ValueError, ImportError, RuntimeError, SafetensorError, UnpicklingError)
"""Errors of ``from_pretrained`` whose words say what is wrong without their type."""
LARGEST = {
    "num_hidden_layers": 10_000,
    "hidden_size": 10**6,
    "intermediate_size": 10**8,
    "num_attention_heads": 10**5,
    "vocab_size": 10**8,
}
"""Largest sizes in a config, checked before `transformers` takes memory for them."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Which model to load, and how.

    Args:
        model_id: A local folder or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        dtype: ``float32``, ``bfloat16`` or ``float16``; ``auto`` is bfloat16 where the hardware supports it natively,
            else float32.
        chat_template: A Jinja chat template to use instead of the tokenizer's own.
        trust_remote_code: Whether code from the model's repository may run; that of an adapter never does.
        template_name: Name of one of several chat templates of the tokenizer; default: chosen for each row, as in
            `transformers`.
        template_day: Day of dates that the chat template writes, as an ISO date; default: today.
        adapter: Folder or Hub id of a PEFT adapter to merge into the model, with the tokenizer and chat template that
            are saved with it; default: none.
        strip_prefix: A prefix to remove from the names of weights, such as ``_orig_mod.``; default: none.
        input_separator: Text between the instruction of an Alpaca or Dolly row and its input; default: one line break.
    """

    model_id: str
    revision: str | None = None
    dtype: Dtype = "auto"
    chat_template: str | None = None
    trust_remote_code: bool = False
    template_name: str | None = None
    template_day: str | None = None
    adapter: str | None = None
    strip_prefix: str | None = None
    input_separator: str | None = None

    @property
    def day(self) -> date | None:
        """Day of dates that the chat template writes; None for today."""
        return date.fromisoformat(self.template_day) if self.template_day else None

    @property
    def record(self) -> dict[str, Any]:
        """Fields to record in a profile, from which the same source can be made.

        Permission to run remote code is not part of it: whoever loads the profile must give it. Optional fields that
        are not set are omitted, so that the digests of older profiles remain.
        """
        optional = ("template_name", "template_day", "adapter", "strip_prefix", "input_separator")
        values = {key: value for key, value in asdict(self).items() if key != "trust_remote_code"}
        return {key: value for key, value in values.items() if key not in optional or value is not None}

    @property
    def loading(self) -> dict[str, Any]:
        """Keyword arguments of every ``from_pretrained``."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """Load a tokenizer; the source's chat template or choice among several ones, if any, replaces its own.

    A tokenizer or chat template saved with the source's adapter, as TRL and Unsloth do, replaces that of the model.

    Raises:
        ModelError: If the tokenizer cannot be loaded, its chat template is not text, or it has none of the name that is
            given.
    """
    check_config(source)  # which the tokenizer's class may depend on
    tokenizer = _load(transformers.AutoTokenizer, source)
    _check_template(tokenizer.chat_template)
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(source)
    if source.adapter is not None:
        tokenizer = _trained_with(source.adapter, tokenizer, source)
    if source.chat_template is not None:
        tokenizer.chat_template = _template_text(source.chat_template)
    if source.template_name is not None:
        tokenizer.chat_template = _named_template(tokenizer.chat_template, source.template_name)
    return tokenizer  # type: ignore[no-any-return]


def _processor_template(source: ModelSource) -> str | None:
    """The chat template that multimodal models may have in a JSON file of their processor; None without one."""
    only_cache = check_reachable(source.model_id, source.revision)
    name, options = LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE, {"local_files_only": only_cache}
    try:
        path = cached_file(source.model_id, name, revision=source.revision, **options)
        text = Path(path or "").read_text(encoding="utf-8")
    except (OSError, ValueError):  # a model without chat template is refused where one is needed
        return None
    return _template_text(text)


def _template_text(text: str) -> str:
    """A chat template from the text of its file: itself, or what JSON such as a processor's has as ``chat_template``.

    Raises:
        ModelError: If it is other JSON, which would be rendered into every conversation.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    template = value.get("chat_template") if isinstance(value, dict) else None
    if not isinstance(template, str):
        raise ModelError(f"wanted a Jinja chat template, or JSON with one as chat_template, got JSON {text!r:.60}")
    return template


def _trained_with(adapter: str, tokenizer: Any, source: ModelSource) -> Any:  # noqa: ANN401  tokenizers
    """The tokenizer that an adapter was trained with: the one saved with it, else the model's."""
    weights = weights_of(adapter)  # first: it says what an adapter is
    template, own = tokenizer.chat_template, tokenizer
    if saved_with(adapter, TOKENIZER_CONFIG_FILE):
        place = replace(source, model_id=adapter, revision=None, trust_remote_code=False)  # no code but the model's
        own = _load(transformers.AutoTokenizer, place, config=load_config(source))
        own.chat_template = own.chat_template or template
    elif path := saved_with(adapter, CHAT_TEMPLATE_FILE):
        own = copy(tokenizer)
        try:
            own.chat_template = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"wanted a chat template as UTF-8 text, got {path}: {error}") from error
    _check_template(own.chat_template)
    changed = [
        *(["chat template"] if source.chat_template is None and own.chat_template != template else []),
        *(["vocabulary"] if own.get_vocab() != tokenizer.get_vocab() else []),
    ]
    if changed:
        _check_embedded(weights, own, source)
        _tell_once(
            f"the adapter {adapter} has a {' and '.join(changed)} of its own, as trained with: used "
            "instead of the base model's (--chat-template FILE gives another template)"
        )
        return own
    return tokenizer


def _check_embedded(weights: Path, tokenizer: Any, source: ModelSource) -> None:  # noqa: ANN401
    """Refuse an adapter's tokenizer with tokens, beside the padding, that have no embeddings."""
    size = getattr(load_config(source).get_text_config(decoder=True), "vocab_size", None)
    size = min(embedding_sizes(weights).values(), default=size)
    beyond = {index for index in tokenizer.get_vocab().values() if size is not None and index >= size}
    if beyond - {tokenizer.pad_token_id}:
        raise ModelError(
            f"the tokenizer of the adapter {source.adapter} has {len(beyond)} tokens more than the {size} that the "
            f"base model and the adapter have embeddings of: {RESIZED}"
        )


@cache
def _tell_once(warning: str) -> None:
    """Log a warning, once per process."""
    logger.warning(warning)


def _check_template(template: object) -> None:
    """Check that a chat template is text, or texts by name."""
    texts = list(template.values()) if isinstance(template, Mapping) else [template]
    if wrong := [text for text in texts if not isinstance(text, str | None)]:
        raise ModelError(f"wanted a chat template that is text, got {type(wrong[0]).__name__}: mend the tokenizer")


def _named_template(template: object, name: str) -> str:
    """One of several named chat templates.

    Raises:
        ModelError: If there is none with this name.
    """
    if not isinstance(template, Mapping):
        raise ModelError(f"wanted a model with named chat templates for {name!r}, got one without: omit the name")
    if name not in template:
        raise ModelError(f"wanted one of the chat templates {', '.join(sorted(template))}, got {name!r}")
    return str(template[name])


def load_config(source: ModelSource) -> Any:  # noqa: ANN401  any config of transformers
    """Load a model's config.

    Raises:
        ModelError: If it cannot be loaded, or the folder holds an adapter rather than a model.
    """
    refuse_adapter(source.model_id, source.revision)
    check_config(source)
    return _load(transformers.AutoConfig, source)


def check_config(source: ModelSource) -> None:
    """Check the type and the sizes in a model's ``config.json``; without one, do nothing: loading reports it.

    Raises:
        ModelError: If it is no object with text as ``model_type``, a size is over its `LARGEST`, or the Hub cannot be
            reached for it.
    """
    only_cache = check_reachable(source.model_id, source.revision)
    try:
        path = cached_file(source.model_id, CONFIG_FILE, revision=source.revision, local_files_only=only_cache)
        config = json.loads(Path(path or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # loading reports it
        return
    if not isinstance(config, dict) or not isinstance(config.get("model_type", ""), str):
        raise ModelError(f"wanted a JSON object with a model_type in {CONFIG_FILE} of {source.model_id!r}, got another")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in LARGEST.keys() & part.keys():
            if isinstance(part[name], int) and part[name] > LARGEST[name]:
                raise ModelError(
                    f"wanted {name} of at most {LARGEST[name]:,} in {CONFIG_FILE} of {source.model_id!r}, got "
                    f"{str(part[name])[:40]}"
                )


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
    # Adapters are made for models with a head, after which their weights are named.
    kind = _kind_with_head(config) if source.adapter else transformers.AutoModel
    return _load_weights(kind, source, truncated, dtype, attention, head=False).get_decoder()


def _kind_with_head(config: Any) -> Any:  # noqa: ANN401  any config, and an Auto class, of transformers
    """The Auto class of a model with its head: `transformers` has one of their own for most multimodal models."""
    is_causal = type(config) in transformers.AutoModelForCausalLM._model_mapping
    return transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForImageTextToText


def load_causal_lm(source: ModelSource, dtype: torch.dtype | Literal["auto"], *, attention: str | None = None) -> Any:  # noqa: ANN401
    """Load a complete model with its head, or an adapter together with its base model.

    Args:
        source: The model; its dtype is ignored.
        dtype: Dtype of the weights; ``auto`` for that of the files.
        attention: Attention implementation of `transformers`; default: the model's.

    Raises:
        ModelError: If the model cannot be loaded, or its files lack weights, which would be initialised randomly.
    """
    config = None if adapter_config_of(source.model_id, source.revision) else load_config(source)
    return _load_weights(transformers.AutoModelForCausalLM, source, config, dtype, attention, head=True)


def load_classifier(source: ModelSource) -> Any:  # noqa: ANN401  any sequence classifier of transformers
    """Load a sequence classifier in float32, in evaluation mode.

    Raises:
        ModelError: If it cannot be loaded, or its files lack weights, for instance those of the head.
    """
    kind = transformers.AutoModelForSequenceClassification
    model, info = _load(kind, source, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{source.model_id} lacks {len(missing)} weights of {type(model).__name__}, which would be random, such as "
            f"{missing[0]}: use a classifier that was saved with its head"
        )
    return model.eval()


def check_checkpoint(source: ModelSource) -> None:
    """Check that a model has all its weights, without reading them: for training, which loads the model itself.

    Raises:
        ModelError: If a weight is missing, of another shape, or not used.
    """
    config = load_config(source)
    if not hasattr(config, "quantization_config"):  # quantised weights cannot be loaded without a device
        _load_weights(_kind_with_head(config), source, config, "auto", None, head=True, device_map="meta")


def _load_weights(
    kind: Any,  # noqa: ANN401  an Auto class of transformers
    source: ModelSource,
    config: Any,  # noqa: ANN401  any config of transformers
    dtype: torch.dtype | Literal["auto"],
    attention: str | None,
    *,
    head: bool,
    **options: object,
) -> Any:  # noqa: ANN401
    """Load a model, check that its weights are those of the files, and merge the source's adapter, if any."""
    options |= {"attn_implementation": attention} if attention else {}
    # Other shapes are reported with the other faults; by itself, `transformers` only refers to a log that is silenced.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, **renaming(source.strip_prefix)}
    dequantise(config)
    try:
        model, info = _load(kind, source, config=config, dtype=dtype, **options)
    except ModelError as error:
        if advice := missing_for(config):
            raise ModelError(f"{error}; {advice}") from error
        raise
    check_weights(model, info, source.model_id, head=head)
    return merge_adapter(model, source.adapter, len(decoder_blocks(model))) if source.adapter else model


def weights_digest(source: ModelSource) -> str | None:
    """Identify the weights of a model, so that a model with the same name but other weights can be detected.

    Args:
        source: The model; for a Hub id the commit is looked up.

    Returns:
        For a folder, a hex digest of samples of its weight files; for a Hub id, the commit, or None if unknown. An
        adapter adds the digest of its own file.
    """
    folder = Path(source.model_id)  # hashing all weights of a large model would take minutes
    digest: str | None
    if folder.is_dir():
        digest = sampled_digest(sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]))
    else:
        digest = getattr(load_config(source), "_commit_hash", None)
    return f"{digest} {sampled_digest([weights_of(source.adapter)])}" if source.adapter else digest


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
    only_cache = check_reachable(source.model_id, source.revision)
    try:
        with quiet(), cache_only(only_cache):
            return kind.from_pretrained(source.model_id, **source.loading, **options)
    except Exception as error:  # files of others can raise any
        if is_out_of_memory(error):  # callers load less, or elsewhere
            raise
        said = str(error) if isinstance(error, SPEAKING) else f"{type(error).__name__}: {error}"
        lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
        # What to install comes after a colon, on a line of its own.
        if isinstance(error, UnpicklingError):
            lines = ["its weights are a pickle that is damaged or would run code; save them as safetensors"]
        first = " ".join(lines[:2]) if lines[0].endswith(":") and isinstance(error, ImportError) else lines[0]
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
    path = Path(name)
    # A Hub id has one slash and no ending of a file of rows.
    is_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    return path.name if is_local or path.suffix.lower() in ROW_SUFFIXES else name
