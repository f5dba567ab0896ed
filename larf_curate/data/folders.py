"""Folders of data files: which files are data, and to which split each belongs, as ``load_dataset(folder)`` sees it."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.data_files import (
    DEFAULT_PATTERNS_ALL,
    FILES_TO_IGNORE,
    _get_data_files_patterns,  # `get_data_patterns` is public, but misreads folders with glob characters in their names
    sanitize_patterns,
)
from datasets.utils.metadata import MetadataConfigs
from fsspec.utils import glob_translate  # type: ignore[import-untyped]
from huggingface_hub import metadata_load
from yaml import YAMLError  # type: ignore[import-untyped]

from larf_curate.data.formats import READABLE, first_line, format_suffix
from larf_curate.data.screening import check_regular
from larf_curate.errors import InputError
from larf_curate.manifests import KINDS, PLAN

logger = logging.getLogger(__name__)
CARD = "README.md"
DEFAULT = "default"
"""Name of the configuration that is read unless another is requested."""
EVERYTHING = "train"
"""Name that `datasets` gives to the split of a folder that does not distinguish splits."""
RECORDS = {*FILES_TO_IGNORE, PLAN, *(kind.file for kind in KINDS), "provenance.json", "croissant.json", "state.json"}
"""Names of files that describe the data beside them: those that `datasets` ignores, manifests and publications."""
DOCUMENTS = {
    *("", ".md", ".rst", ".html", ".py", ".sh", ".ipynb", ".yaml", ".yml", ".toml", ".cfg", ".ini", ".lock", ".log"),
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg"),
}
"""Endings of files that people keep beside data; all other files that are not read are reported."""
SHOWN = 3
"""Number of files that a message names."""


@dataclass(frozen=True, kw_only=True)
class FolderFiles:
    """The data files of one split of a folder.

    Args:
        files: The files, sorted by path.
        split: Name of the split; None if the folder does not distinguish splits.
        config: Name of the configuration; None if the folder has no more than one.
    """

    files: tuple[Path, ...]
    split: str | None = None
    config: str | None = None


def folder_files(
    folder: Path, *, split: str | None = None, config: str | None = None, default_split: str | None = None
) -> FolderFiles:
    """List the data files of a folder.

    As in ``load_dataset(folder)``, configurations and splits are those of its ``README.md``, else splits are recognised
    by folder and file names (``train/``, ``test-00000-of-00002.parquet``). Hidden files and folders, those with a
    double underscore, and files that describe the data are ignored. Other files that are not read are reported.

    Args:
        folder: The folder.
        split: Split to read; required if there are several and none of them is the default.
        config: Configuration to read; required if there are several and none is the default.
        default_split: Split that is read if there are several and none is requested.

    Raises:
        InputError: If there are no data files, one is a pipe or a link to nothing, or a split or configuration must be
            chosen.
    """
    visible = _visible_files(folder)
    data = [path for path in visible if format_suffix(path) and path.name not in RECORDS]
    if not data:
        names = _named(path for path in visible if path.name not in RECORDS)
        raise InputError(
            f"no files ending in {READABLE} in {folder}, and save_to_disk did not write it: check the folder"
            + (f", which has {names}" if names else "")
        )
    layout = _layout(folder, {path.relative_to(folder).as_posix(): path for path in data})
    config = _chosen_config(layout, folder, config)
    splits = layout[config]
    split = choose_split(list(splits), str(folder), split or (default_split if default_split in splits else None))
    files = splits[split]
    if not files:
        raise InputError(f"{folder / CARD} names no existing data file for the split {split}: correct it, or add files")
    _report_unread(folder, visible, {path for each in layout.values() for paths in each.values() for path in paths})
    return FolderFiles(
        files=tuple(files),
        split=None if layout == {DEFAULT: {EVERYTHING: files}} else split,
        config=config if len(layout) > 1 else None,
    )


def choose_split(splits: Sequence[str], name: str, split: str | None) -> str:
    """The split to read: the given one, or the only one.

    Args:
        splits: Names of the splits that there are.
        name: Name of the dataset, for the message.
        split: The requested split.

    Raises:
        InputError: If there is no such split, or none is requested and there are several.
    """
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        raise InputError(f"{name} has the splits {', '.join(splits)}: choose one (--split)")
    return split


def special_part(path: Path) -> bool:
    """Whether a relative path is hidden, or in a folder with a double underscore such as ``__MACOSX``."""
    return any(part.startswith(".") for part in path.parts) or any(part.startswith("__") for part in path.parent.parts)


def _visible_files(folder: Path) -> list[Path]:
    """All files in a folder and its subfolders that `datasets` does not ignore by their path, sorted."""
    paths = [path for path in folder.rglob("*") if not special_part(path.relative_to(folder)) and not path.is_dir()]
    for path in paths:
        if format_suffix(path):
            check_regular(path)
    return sorted(path for path in paths if path.is_file())


def _layout(folder: Path, files: Mapping[str, Path]) -> dict[str, dict[str, list[Path]]]:
    """The files of each split of each configuration; ``files`` are all data files by relative path."""
    configs = {name: _config_patterns(config, files) for name, config in _card_configs(folder).items()}
    return {
        name: {split: _matching(patterns, files) for split, patterns in splits.items()}
        for name, splits in (configs or {DEFAULT: _name_patterns(files)}).items()
    }


def _card_configs(folder: Path) -> dict[str, Any]:
    """The configurations that the dataset card declares, by name."""
    try:
        card = metadata_load(folder / CARD) if (folder / CARD).is_file() else None
        return dict(MetadataConfigs.from_dataset_card_data(card)) if card else {}
    except (ValueError, TypeError, AttributeError, YAMLError) as error:
        raise InputError(f"cannot read the configs in {folder / CARD}: {first_line(error)}; correct them") from error


def _config_patterns(config: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, list[str]]:
    """Patterns of the files of each split of a configuration."""
    if "data_files" in config:
        return {str(split): list(patterns) for split, patterns in sanitize_patterns(config["data_files"]).items()}
    prefix = f"{str(config.get('data_dir') or '').strip('/')}/".removeprefix("/")
    below = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
    splits = _name_patterns(below)
    return {split: [prefix + pattern for pattern in patterns] for split, patterns in splits.items()}


def _name_patterns(names: Iterable[str]) -> dict[str, list[str]]:
    """Patterns of the files of each split, which is recognised by the names of files and folders."""
    names = list(names)

    def resolve(pattern: str) -> list[str]:
        return [name for name in names if re.match(glob_translate(pattern), name)]

    try:
        found = _get_data_files_patterns(resolve)
    except FileNotFoundError:  # there are no files, as in a folder that the card names and that does not exist
        return {EVERYTHING: []}
    if list(found.values()) == list(DEFAULT_PATTERNS_ALL.values()):
        return {EVERYTHING: ["**"]}
    return {str(split): patterns for split, patterns in found.items()}


def _matching(patterns: Sequence[str], files: Mapping[str, Path]) -> list[Path]:
    expressions = [re.compile(glob_translate(pattern.removeprefix("./"))) for pattern in patterns]
    return [path for name, path in files.items() if name in patterns or any(e.match(name) for e in expressions)]


def _chosen_config(layout: Mapping[str, Any], folder: Path, config: str | None) -> str:
    """Name of the configuration to read."""
    if config is None and (len(layout) == 1 or DEFAULT in layout):
        return DEFAULT if DEFAULT in layout else next(iter(layout))
    if config is None or config not in layout:
        raise InputError(f"{folder} has the configurations {', '.join(layout)}: choose one (--config)")
    return config


def _report_unread(folder: Path, visible: Sequence[Path], read: set[Path]) -> None:
    """Warn about files of a folder that are not read, although they may be data."""
    others = [path for path in visible if path not in read and path.name not in RECORDS]
    if unsplit := [path for path in others if format_suffix(path)]:
        logger.warning(
            "%s belong to no split of %s and are not read: give them by name to use them", _named(unsplit), folder
        )
    if foreign := [p for p in others if not format_suffix(p) and p.suffix.lower() not in DOCUMENTS]:
        logger.warning(
            "not read in %s: %s; files ending in %s are read: convert them", folder, _named(foreign), READABLE
        )


def _named(paths: Iterable[Path]) -> str:
    """The names of the first files, and the number of the others."""
    names = [path.name for path in paths]
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
