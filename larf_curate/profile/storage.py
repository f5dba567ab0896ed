"""Files of a profile, ``larf_profile.json`` and ``larf_profile.safetensors``, in a folder or on the Hub."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from typing_extensions import TypedDict

from larf_curate.errors import InputError, ModelError, ProfileError
from larf_curate.files import atomic_path, check_readable, read_json, write_json
from larf_curate.manifests import DecidedRecord, NeutralRecord, ReferencesRecord
from larf_curate.models.hub import check_reachable
from larf_curate.profile.reference_states import BORDERLINE, MATCHED, positions_of
from larf_curate.records import STRICT, parse_record
from larf_curate.remote import is_url, local_copy, public_name
from larf_curate.states import POSITIONS, States, Vectors

FORMAT = 2
CONFIG_FILE = "larf_profile.json"
STATES_FILE = "larf_profile.safetensors"
CARD = "README.md"
DAMAGE_ERRORS = (OSError, SafetensorError, KeyError, TypeError, ValueError)
"""Errors that a damaged file can raise while a profile is read from it."""


class SourceConfig(TypedDict):
    """The fields of `ModelSource` in a profile."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    model_id: str
    revision: str | None
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    chat_template: str | None
    template_name: NotRequired[str]
    template_day: NotRequired[str]
    adapter: NotRequired[str]
    strip_prefix: NotRequired[str]
    input_separator: NotRequired[str]


class LabelledReferences(ReferencesRecord):
    """Description of the references, with the hazard category of each pair."""

    labels: list[str]


class LabelledDecided(DecidedRecord):
    """Description of the decided rows, with the hazard category of each removed one."""

    labels: list[str]


class ProfileConfig(TypedDict):
    """``larf_profile.json``: everything that a profile records except its states."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    format: int
    source: SourceConfig
    layers: list[int]
    template_digest: str
    references: LabelledReferences
    neutral: NeutralRecord
    canary: dict[str, JsonValue]
    choice: dict[str, JsonValue]
    signal: str
    top_k: int | None
    max_length: int
    package: str
    decisions: NotRequired[LabelledDecided]


def write(folder: Path, config: Mapping[str, Any], tensors: dict[str, Vectors], digest: str) -> None:
    """Write settings and states into a folder; the digest of both goes into the metadata of the states."""
    with atomic_path(folder / STATES_FILE) as aside:
        save_file(tensors, aside, metadata={"digest": digest})
    # Last, since a folder counts as a profile once this file exists.
    write_json(folder / CONFIG_FILE, {"format": FORMAT, **config})


def find(name: str | Path, *, revision: str | None, token: str | None) -> Path:
    """Folder of a profile: a local one, or a URL or Hub repository, which is downloaded.

    Raises:
        ProfileError: If neither exists, or it does not contain a profile.
    """
    folder = local_copy(name) if is_url(name) or Path(name).is_dir() else _download(str(name), revision, token)
    name = public_name(name)
    if not (folder / CONFIG_FILE).exists():
        raise ProfileError(
            f"no {CONFIG_FILE} in {name}: give a folder or Hub id that save_pretrained or push_to_hub has written"
        )
    return folder


def read_config(folder: Path, name: str | Path) -> dict[str, Any]:
    """Read the settings in a folder.

    Raises:
        ProfileError: If they are damaged, or of another format.
    """
    path = folder / CONFIG_FILE
    try:
        value = read_json(path)
        found = value.get("format") if isinstance(value, dict) else None
        if found not in (None, FORMAT):
            raise ProfileError(
                f"profile format {str(found)[:20]} in {name}, wanted {FORMAT}: build it again, or upgrade larf-curate"
            )
        config = parse_record(value, ProfileConfig, path=path, remedy="build the profile again")
    except ProfileError:
        raise
    except InputError as error:
        raise damaged_error(name, error) from error
    return {key: value for key, value in config.items() if key != "format"}


def read_tensors(folder: Path) -> dict[str, States]:
    """Read states by side and position; raises one of `DAMAGE_ERRORS` if the file is damaged."""
    states: dict[str, States] = {}
    check_readable(folder / STATES_FILE)
    for key, value in load_file(folder / STATES_FILE).items():
        side, position = key.split(".")
        states.setdefault(side, {})[position] = value  # type: ignore[index]
    return states


def check_states(states: Mapping[str, States], config: Mapping[str, Any]) -> None:
    """Check the shapes of the states of a profile, and that they are finite.

    Args:
        states: States by side and position.
        config: The settings of the profile.

    Raises:
        ValueError: If a side or position is missing or unknown, a shape does not fit, or a number is not finite.
    """
    layers, references = len(config["layers"]), config["references"]
    rows = {"unsafe": references["unsafe"], "safe": references["safe"], "neutral": config["neutral"]["rows"]}
    if missing := sorted(set(rows) - set(states)):
        raise ValueError(f"no states of the {missing[0]} rows")
    rows |= {side + MATCHED: count for side, count in rows.items()}
    decided = (config.get("decisions") or {}).get("rows", {})
    if missing := sorted(set(decided) - set(states)):
        raise ValueError(f"no states of the {missing[0]} rows")
    rows |= decided
    if borderline := states.get(BORDERLINE):
        rows[BORDERLINE] = len(borderline.get("prompt", ()))  # any number: the packaged prompts may change
    width = states["unsafe"]["last"].shape[-1]
    for side, by_position in states.items():
        if side not in rows or set(by_position) != set(positions_of(side)):
            raise ValueError(f"wanted states {', '.join(POSITIONS)} of each side, got others of {side[:20]}")
        for position, values in by_position.items():
            wanted = (rows[side], layers, 1 if position == "length" else width)
            if values.shape != wanted or values.dtype != np.float32:
                raise ValueError(f"{side}.{position} is {values.dtype} of shape {values.shape}, wanted {wanted}")
            if not np.isfinite(values).all():
                raise ValueError(f"{side}.{position} has values that are NaN or infinite")


def check_digest(folder: Path, name: str | Path, digest: str) -> None:
    """Check that settings and states were written together and not changed since.

    Raises:
        ProfileError: If the digest differs from the recorded one.
    """
    with safe_open(folder / STATES_FILE, framework="numpy") as file:
        if (file.metadata() or {}).get("digest") != digest:
            raise ProfileError(f"the profile in {name} was changed after it was written: build it again")


def damaged_error(name: str | Path, error: Exception) -> ProfileError:
    """Error for damaged files, to be raised by the caller."""
    return ProfileError(f"the profile in {name} is damaged ({error}): build it again")


def upload(
    folder: Path, repo_id: str, merge_card: Callable[[str | None, str], str], *, private: bool, token: str | None
) -> str:
    """Upload a profile's files and a card to a Hub model repository in one commit; returns the URL of the commit.

    Args:
        folder: Folder of the profile.
        repo_id: The repository; created if needed.
        merge_card: The text of the new card, from that of the existing one, or None, and the id of the repository.
        private: Visibility of a new repository.
        token: Hub token.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    head = api.model_info(repo_id).sha
    card = merge_card(_existing_card(api, repo_id, head), repo_id)
    files: dict[str, bytes | Path] = {
        CARD: card.encode(),
        **{name: folder / name for name in (CONFIG_FILE, STATES_FILE)},
    }
    additions = [CommitOperationAdd(name, content) for name, content in files.items()]
    # If nothing changed, the client makes no commit and returns the head.
    commit = api.create_commit(repo_id, additions, commit_message="Upload safety profile", parent_commit=head)
    return str(commit.commit_url)


def _existing_card(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """The text of a repository's card; None if it has none."""
    try:
        with tempfile.TemporaryDirectory(prefix="larf-curate-") as cache:
            path = api.hf_hub_download(repo_id, CARD, revision=revision, cache_dir=cache)
            return Path(path).read_text(encoding="utf-8-sig")
    except EntryNotFoundError:
        return None


def _download(name: str, revision: str | None, token: str | None) -> Path:
    files = [CONFIG_FILE, STATES_FILE]
    try:
        cached = check_reachable(name, revision, name=CONFIG_FILE)
        return Path(
            snapshot_download(name, revision=revision, token=token, allow_patterns=files, local_files_only=cached)
        )
    except ModelError as error:
        raise ProfileError(str(error)) from error
    except (TransportError, HFValidationError, OSError) as error:  # OSError: offline, and not in the cache
        first = str(error).strip().splitlines()[0]
        raise ProfileError(f"no folder and no Hub repository {name!r} with a safety profile: {first}") from error
