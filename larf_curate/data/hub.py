"""Datasets of the Hub: read at one commit, which is recorded; in offline mode from the cache of `datasets`."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets import Dataset, get_dataset_config_names, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetsError
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's

from larf_curate.data.folders import DEFAULT, choose_split
from larf_curate.data.formats import first_line, silenced
from larf_curate.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HubRows:
    """Rows of a dataset of the Hub.

    Args:
        rows: The rows.
        split: Name of their split.
        revision: Commit that they are from.
    """

    rows: Dataset
    split: str
    revision: str


def open_hub(name: str, *, split: str | None, config: str | None, revision: str | None) -> HubRows:
    """Read a split of a dataset of the Hub.

    In offline mode (``HF_HUB_OFFLINE=1``), the dataset must have been read before: it is in the cache of `datasets`,
    under its commit.

    Args:
        name: Id of the dataset.
        split: Split to read; required if there are several.
        config: Configuration to read; required if there are several and none is the default.
        revision: Commit, tag or branch; default: the latest commit, or in offline mode the one that was read last.

    Raises:
        InputError: If there is no such dataset or revision, it cannot be read, the Hub cannot be reached, or a split or
            configuration must be chosen.
    """
    with _hub_errors(name, revision):
        try:
            # Resolve a branch or tag once, so that all requests read the same commit, and record it.
            commit = HfApi().dataset_info(name, revision=revision).sha
        except OfflineModeIsEnabled:
            return _from_cache(name, split, config, revision)
        configs = get_dataset_config_names(name, revision=commit)
        _check_config(name, configs, config)
        split = choose_split(get_dataset_split_names(name, config, revision=commit), name, split)
        rows = load_dataset(name, config, split=split, revision=commit)
    return HubRows(rows=rows, split=split, revision=str(commit))


def _check_config(name: str, configs: list[str], config: str | None) -> None:
    if config not in configs and (config or len(configs) > 1 and DEFAULT not in configs):
        raise InputError(f"{name} has the configurations {', '.join(configs)}: choose one (--config)")


def _from_cache(name: str, split: str | None, config: str | None, revision: str | None) -> HubRows:
    """Read a dataset that an earlier call, with a connection, has stored in the cache of `datasets`."""
    cached = _cached_configs(name)
    if not cached:
        raise InputError(
            f"no file or folder {name!r}, and the Hub cannot be reached in offline mode (HF_HUB_OFFLINE=1), nor is the "
            "dataset in the cache: read it once with a connection, or give files"
        )
    commits = list(dict.fromkeys(folder.name for folder in cached))
    commit = revision or commits[0]
    if commit not in commits:
        raise InputError(
            f"the cache has {name!r} at {', '.join(commits)}, but not at {revision!r}: choose one of these commits "
            "(--revision), since branches and tags cannot be resolved in offline mode (HF_HUB_OFFLINE=1)"
        )
    folders = {folder.parts[-3]: folder for folder in cached if folder.name == commit}
    _check_config(name, list(folders), config)
    folder = folders[config or (DEFAULT if DEFAULT in folders else next(iter(folders)))]
    logger.warning("offline: %s is read from the cache, at commit %s", name, commit)
    with silenced():
        builder = Cache(
            dataset_name=name.split("/")[-1],
            repo_id=name,
            config_name=folder.parts[-3],
            version=folder.parts[-2],
            hash=commit,
        )
        builder.download_and_prepare()
        split = choose_split([str(key) for key in builder.info.splits], name, split)
        return HubRows(rows=builder.as_dataset(split), split=split, revision=commit)


def _cached_configs(name: str) -> list[Path]:
    """Folders ``<configuration>/<version>/<commit>`` of a dataset in the cache, most recently written first."""
    *owner, dataset = name.split("/")
    root = Path(datasets.config.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, camelcase_to_snakecase(dataset)])
    infos = [path for path in root.glob("*/*/*/dataset_info.json") if _is_configuration(path)]
    return [path.parent for path in sorted(infos, key=lambda path: -path.stat().st_mtime)]


def _is_configuration(info: Path) -> bool:
    """Whether a cached dataset is a configuration as the repository has it, and not one with other reading options."""
    return bool(json.loads(info.read_text(encoding="utf-8")).get("config_name") == info.parts[-4])


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Convert errors of the Hub and of `datasets` to an `InputError` of one line with a remedy."""
    try:
        yield
    except InputError:
        raise
    except (DatasetsError, TransportError, OSError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(_hub_message(error, name, revision)) from error


def _hub_message(error: Exception, name: str, revision: str | None) -> str:
    if isinstance(error, RevisionNotFoundError):
        return f"the Hub dataset {name!r} has no revision {revision!r}: give an existing commit, tag or branch"
    if isinstance(error, GatedRepoError):
        return f"the Hub dataset {name!r} is gated: request access on its page, then run hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return f"no file, folder or Hub dataset {name!r}: check the name; if it is private, run hf auth login"
    cause = first_line(error.__cause__ or error)
    if isinstance(error, HfHubHTTPError):
        return f"the Hub rejected the request for {name!r} ({cause}): check HF_TOKEN, or try again later"
    if isinstance(error, TransportError | ConnectionError):
        return (
            f"no file or folder {name!r}, and the Hub cannot be reached ({cause}): check the connection, read a cached "
            "copy with HF_HUB_OFFLINE=1, or give files"
        )
    return f"cannot read the Hub dataset {name!r}: {cause}; check the name, or give its data files instead"
