"""The Hub as a place of models and profiles: whether it can be reached, found out with one request."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's

from larf_curate.errors import ModelError

logger = logging.getLogger(__name__)
CONFIG_FILE = "config.json"
SECONDS = 5
"""Time that the Hub has for its answer."""
_reached: dict[str, bool] = {}
"""Whether each Hub that was asked for a cached model answered, by address; not asked again in this process."""


def check_reachable(model: str, revision: str | None = None, *, name: str = CONFIG_FILE) -> bool:
    """Check that the Hub can be reached, if a model or profile is not a folder.

    Otherwise `huggingface_hub` tries each file six times, which takes half a minute, and reports each attempt.

    Args:
        model: Folder or Hub id.
        revision: Branch, tag or commit.
        name: A file that it has.

    Returns:
        Whether it cannot be reached, and the file is in the cache: a value for ``local_files_only``.

    Raises:
        ModelError: If it cannot be reached, and the file is not in the cache either.
    """
    if os.path.isdir(model):
        return False
    is_cached = False
    try:
        is_cached = try_to_load_from_cache(model, name, revision=revision) is not None
        if not (is_cached and constants.ENDPOINT in _reached):
            get_hf_file_metadata(hf_hub_url(model, name, revision=revision), timeout=SECONDS)
            _reached[constants.ENDPOINT] = True
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled):  # loading reports it, or needs no such file
        return False
    except TransportError as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not is_cached:
            raise ModelError(
                f"no folder {model!r}, and the Hub cannot be reached ({reason}): check the connection, or give a folder"
            ) from error
        _reached[constants.ENDPOINT] = False
        logger.warning("the Hub cannot be reached (%s): what is in the cache is read", reason)
    return is_cached and not _reached[constants.ENDPOINT]


@contextmanager
def cache_only(active: bool) -> Iterator[None]:
    """Read from the cache inside a ``with`` block, as with ``HF_HUB_OFFLINE=1``, if ``active``.

    `transformers` looks for an adapter beside a model on the Hub even with ``local_files_only``.
    """
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or active
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
