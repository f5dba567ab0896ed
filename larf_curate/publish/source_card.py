"""Licence and languages of the source dataset, read from its card on the Hub: carried over, never guessed."""

import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from larf_curate.publish.kept_rows import KeptRows

_TEXTS = {
    "license": re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}"),
    "license_name": re.compile(r"[^\s\x00-\x1f][^\x00-\x1f]{0,100}"),
    "license_link": re.compile(r"(?:https?://)?[\w./%:-]{1,300}"),
    "language": re.compile(r"[a-z]{2,3}|code|multilingual"),
}
"""Fields of a card that are carried over, and what their values look like."""
LISTS = ("license", "language")
"""Fields that may have several values."""


@dataclass(frozen=True, kw_only=True)
class SourceCard:
    """What the card of the source dataset says.

    Args:
        dataset: Id of the source dataset on the Hub; None if it is of elsewhere.
        metadata: Its licence and languages, as far as the card has them.
        problem: Why the card, or a field of it, cannot be read.
    """

    dataset: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None


def read_source_card(kept_rows: KeptRows, *, token: str | None, endpoint: str | None) -> SourceCard:
    """Read the card of the dataset that the rows are from, at the commit that was scored.

    Args:
        kept_rows: The rows, with the record of their source.
        token: Hub token.
        endpoint: URL of the Hub (default: ``HF_ENDPOINT`` or the public Hub).

    Returns:
        What it says. A card that cannot be read is no error: the rows do not depend on it.
    """
    source = kept_rows.scored.get("source")
    if not (isinstance(source, dict) and _is_hub_dataset(source)):
        return SourceCard()
    dataset, revision = source["dataset"], source["revision"]
    try:
        with tempfile.TemporaryDirectory(prefix="larf-curate-") as cache:
            api = HfApi(endpoint, token)
            path = api.hf_hub_download(dataset, "README.md", repo_type="dataset", revision=revision, cache_dir=cache)
            text = Path(path).read_text(encoding="utf-8-sig")
        data = DatasetCard(text, ignore_metadata_errors=True).data
    except LocalEntryNotFoundError as error:  # the Hub cannot be reached; a subclass of the next
        return SourceCard(dataset=dataset, problem=_first_line(error))
    except EntryNotFoundError:
        return SourceCard(dataset=dataset)
    except (TransportError, OSError, ValueError) as error:
        return SourceCard(dataset=dataset, problem=_first_line(error))
    metadata: dict[str, Any] = {name: data[name] for name in _TEXTS if _is_valid(name, data.get(name))}
    invalid = [name for name in _TEXTS if data.get(name) and name not in metadata]
    problem = f"not a value that the Hub knows in {', '.join(invalid)}" if invalid else None
    return SourceCard(dataset=dataset, metadata=metadata, problem=problem)


def _is_hub_dataset(source: dict[str, Any]) -> bool:
    """Whether a recorded source is a dataset of the Hub: files have a digest instead of a commit."""
    dataset = source.get("dataset")
    if not (isinstance(dataset, str) and isinstance(source.get("revision"), str)) or "sha256" in source:
        return False
    try:
        validate_repo_id(dataset)
    except HFValidationError:
        return False
    return True


def _is_valid(name: str, value: object) -> bool:
    values = value if isinstance(value, list) and name in LISTS else [value]
    return bool(values) and all(isinstance(item, str) and _TEXTS[name].fullmatch(item) for item in values)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
