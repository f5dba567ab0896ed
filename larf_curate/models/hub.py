"""The Hub as a place of models: whether it can be reached, found out with one request."""

import os

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's

from larf_curate.errors import ModelError

CONFIG_FILE = "config.json"
SECONDS = 5
"""Time that the Hub has for its answer."""


def check_reachable(model: str, revision: str | None = None, *, name: str = CONFIG_FILE) -> None:
    """Check that the Hub can be reached, if a model is neither a folder nor in the cache.

    Otherwise `huggingface_hub` tries each file six times, which takes half a minute, and reports each attempt.

    Args:
        model: Folder or Hub id.
        revision: Branch, tag or commit.
        name: A file that the model has.

    Raises:
        ModelError: If the Hub cannot be reached.
    """
    try:
        if os.path.isdir(model) or try_to_load_from_cache(model, name, revision=revision) is not None:
            return
        get_hf_file_metadata(hf_hub_url(model, name, revision=revision), timeout=SECONDS)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):  # loading reports it, or needs no such file
        return
    except TransportError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            f"no folder {model!r}, and the Hub cannot be reached ({reason}): check the connection, or give a folder"
        ) from error
