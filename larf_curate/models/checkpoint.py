"""Check what `transformers` has loaded: every weight of the part that is used must come from the model's files.

`transformers` initialises missing weights at random and only logs it, so that without these checks a wrong checkpoint
would be scored as if it were the model.
"""

import logging
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import nn

from larf_curate.errors import ModelError
from larf_curate.models.blocks import decoder_blocks
from larf_curate.models.quantisation import is_quantised

logger = logging.getLogger(__name__)
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "base_model.model.")
"""Components that torch.compile, data parallelism and PEFT put into the names of weights."""
ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer|lora_magnitude_vector)\b")
"""Names of weights of an adapter that was saved without merging it."""
MASKS = re.compile(r"(inv_freq|(attn|attention)\.(masked_)?bias)$")
"""Constants that older versions of `transformers` saved with the weights."""
POOLER = re.compile(r"(^|\.)pooler\.")
"""Layers after the last block that encoders have and states do not depend on."""
SHOWN = 3
"""Number of weights that an error names."""


def check_weights(
    model: Any,  # noqa: ANN401  any model of transformers
    info: Mapping[str, Any],
    model_id: str,
    *,
    head: bool,
) -> None:
    """Check that all weights of a model were loaded, and that no weight of its decoder was left over.

    Args:
        model: The model as loaded.
        info: Loading information of ``from_pretrained``.
        model_id: Name of the model in errors.
        head: Whether all of the model is used; else its decoder alone, and weights outside it may be missing.

    Raises:
        ModelError: If a weight is missing, has another shape than the config gives it, or is in the files but not in
            the model.
    """
    decoder = model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    used = "" if head else path
    missing = sorted(name for name in info["missing_keys"] if _is_in(name, used) and not POOLER.search(name))
    unexpected = sorted(_left_over(info["unexpected_keys"], model.base_model_prefix, path, decoder))
    what = f"of {type(model).__name__}"
    if shapes := sorted(item for item in info["mismatched_keys"] if _is_in(item[0], used)):
        name, found, wanted = shapes[0]
        raise ModelError(
            f"{len(shapes)} weights {what} in {model_id} do not have the shape of its config, such as {name} with "
            f"{tuple(found)} instead of {tuple(wanted)}: use the config.json that was saved with these weights"
        )
    constants = {name for name, _ in model.named_buffers() if MASKS.search(name) or not is_quantised(model.config)}
    if lacking := [name for name in missing if name not in constants]:
        remedy = _remedy(missing, info["unexpected_keys"], model.base_model_prefix)
        raise ModelError(
            f"{model_id} lacks {len(lacking)} weights {what}, which would be random: {_some(lacking)}; {remedy}"
        )
    if unexpected:
        remedy = (
            "it holds an adapter that was not merged: merge it with merge_and_unload() and save the result"
            if any(map(ADAPTER.search, unexpected))
            else "use the config.json that was saved with these weights"
        )
        raise ModelError(
            f"{model_id} has {len(unexpected)} weights that {type(model).__name__} with its config does not use, so "
            f"that its states would be wrong: {_some(unexpected)}; {remedy}"
        )
    if missing:
        logger.warning("%s lacks constants, which get their default values: %s", model_id, _some(missing))


def renaming(prefix: str | None) -> dict[str, Any]:
    """Argument of ``from_pretrained`` that removes a prefix from the names of weights, wherever it is a component."""
    return {"key_mapping": {rf"(?<![^.]){re.escape(prefix)}": ""}} if prefix else {}


def _is_in(name: str, path: str) -> bool:
    return not path or name.startswith(f"{path}.")


def _some(names: Collection[str]) -> str:
    """The first of some names, and that there are more."""
    return ", ".join(sorted(names)[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def _left_over(names: Collection[str], base: str, path: str, decoder: nn.Module) -> Iterator[str]:
    """Names of weights in the files that belong to modules of the decoder, blocks that are not loaded excluded.

    Heads, vision encoders and deeper blocks may be left over.
    """
    modules, blocks = dict(decoder.named_modules()), decoder_blocks(decoder)
    leads = sorted({f"{lead}." if lead else "" for lead in (path, f"{base}.{path}".strip("."))}, key=len, reverse=True)
    for name in names:
        rest = next((name.removeprefix(lead) for lead in leads if name.startswith(lead)), None)
        if rest is None or MASKS.search(rest):
            continue
        owner = rest.rpartition(".")[0]
        while owner and owner not in modules:
            owner = owner.rpartition(".")[0]
        if owner and modules[owner] is not blocks:
            yield name


def _remedy(missing: Collection[str], unexpected: Collection[str], base: str) -> str:
    """What to do about missing weights."""
    if any(map(ADAPTER.search, unexpected)):
        return "it holds an adapter that was not merged: merge it with merge_and_unload() and save the result"
    if prefix := _prefix(missing, unexpected, base):
        return (
            f"its files have them with the prefix {prefix!r}: remove it on loading (--strip-prefix {prefix}, "
            f"strip_prefix={prefix!r})"
        )
    return "download or save the model again completely, with its head if that is missing and with its own config.json"


def _prefix(missing: Collection[str], unexpected: Collection[str], base: str) -> str | None:
    """The prefix with which the files have the missing weights; None if they do not."""
    wanted = {name: (name, f"{base}.{name}", name.removeprefix(f"{base}.")) for name in missing}
    for wrapper in WRAPPERS:
        stripped = {name.replace(wrapper, "") for name in unexpected if wrapper in name}
        if stripped and all(any(form in stripped for form in forms) for forms in wanted.values()):
            return wrapper
    for name in sorted(missing):
        for found in unexpected:
            lead = found.removesuffix(f".{name}")
            if lead != found:
                return f"{lead}.".removesuffix(f"{base}.") or None
    return None
