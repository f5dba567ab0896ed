"""Open datasets by Hub id, folder, file or glob, and split them into pieces that are scored one by one."""

import glob
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, DatasetDict, Features, load_from_disk
from datasets.exceptions import DatasetsError
from datasets.table import concat_tables

from larf_curate.data.folders import SHOWN, FolderFiles, choose_split, folder_files, special_part
from larf_curate.data.formats import READABLE, bare_name, file_digest, first_line, format_suffix, read_file, silenced
from larf_curate.data.hub import open_hub
from larf_curate.data.replacement import UNFINISHED
from larf_curate.data.results import PARTS, check_results
from larf_curate.data.screening import check_folder_files, check_name, check_regular
from larf_curate.errors import InputError
from larf_curate.files import sha256
from larf_curate.manifests import DECISIONS, SELECTION
from larf_curate.remote import is_url, last_part, local_name, naming_urls, public_name

ROWS_PER_PIECE = 2_500
"""Small enough that a few thousand rows keep several processes busy, and an interruption loses little work."""

MOST_SINGLE_FILES = 100
"""Number of files from which on small ones share pieces."""

MOST_PIECES = 1_000_000
"""Largest number of pieces: the manifest of their shards is a JSON file."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A contiguous part of a source, which scoring writes as one shard.

    Args:
        name: File name of the shard, without suffix.
        rows: The rows.
        first: Number of the first of them in the source.
    """

    name: str
    rows: Dataset
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset, split into pieces.

    Args:
        pieces: The pieces, in row order.
        description: Provenance of the rows, as JSON values: name of the dataset, with its split, configuration and
            commit, or with the number of files and the digest of their content.
        mapped: Files that are read whenever rows are, and whose digest is in the description. Rows of other files are
            read once, into the cache.
    """

    pieces: tuple[Piece, ...]
    description: dict[str, Any]
    mapped: tuple[Path, ...] = ()

    @property
    def rows(self) -> int:
        """Total number of rows."""
        return sum(len(piece.rows) for piece in self.pieces)

    def share(self, index: int, count: int) -> "Source":
        """Return the pieces that one of several processes scores: every ``count``-th, from number ``index`` on.

        Args:
            index: Number of the process, from 0.
            count: Number of processes; those beyond the number of pieces have none.

        Raises:
            InputError: If the number is out of range.
        """
        if not 0 <= index < count:
            raise InputError(f"wanted a shard from 0/{count} to {count - 1}/{count}, got {index}/{count}: count from 0")
        return replace(self, pieces=self.pieces[index::count])

    def check_unchanged(self) -> None:
        """Check that the rows still are those of the description.

        Raises:
            InputError: If a file was changed since the source was opened.
        """
        if self.mapped and _digest(self.mapped) != self.description["sha256"]:
            raise InputError(
                f"the files of {self.description['dataset']} changed while they were read: score them again, into "
                "another folder"
            )


@naming_urls()
def open_source(
    name: str | Sequence[str],
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Source:
    """Open a dataset.

    Args:
        name: A Hub id, a folder from ``save_to_disk``, a folder of data files, a file, or a glob; or several files,
            globs and folders of data files, whose rows follow each other in this order. Files, globs and folders may
            be URLs, such as ``s3://bucket/data/*.parquet``; see `larf_curate.remote`.
        split: Split to open; required if there are several.
        config: Configuration of a Hub dataset or folder; required if there are several and none is the default.
        revision: Commit, tag or branch of a Hub dataset; default: the latest commit.
        limit: Maximum number of rows, from the beginning; default: all.

    Returns:
        The source; each file becomes one piece, or several of at most `ROWS_PER_PIECE` rows. Of more than
        `MOST_SINGLE_FILES` files, small ones that follow each other share a piece. Files without rows are skipped.

    Raises:
        InputError: If there is no such dataset, it has no rows or far too many, a file cannot be read or is given
            twice, columns or types differ between files, a split or configuration must be chosen, or an option does not
            apply to this kind of source.
    """
    given = [name] if isinstance(name, str) else list(name)
    names = [local_source(each) for each in given]
    if len(names) == 1 and not _is_local(names[0]):
        hub = open_hub(names[0], split=split, config=config, revision=revision)
        parts = [(hub.split, hub.rows)]
        description = {"dataset": names[0], "config": config, "split": hub.split, "revision": hub.revision}
    else:
        parts, description = _open_local(names, split, config, revision)
        description = {"dataset": _joined([_title(each) for each in given]), **description}
    if not any(len(dataset) for _, dataset in parts):
        raise InputError(f"{_joined(list(map(public_name, given)))} has no rows: check it, or give another dataset")
    saved = len(names) == 1 and _is_saved(Path(names[0]))
    mapped = _mapped_files(parts[0][1]) if saved else ()
    return replace(_source(parts, limit, description), mapped=mapped)


def check_there(name: str) -> None:
    """Check that a dataset on this machine is there, without reading it; a URL or Hub id is not looked for.

    Raises:
        InputError: If a file, folder or glob names nothing.
    """
    if not is_url(name) and _is_local(name) and not Path(name).exists():
        _matches(name)


def local_source(name: str) -> str:
    """The name of a copy of what a URL names, as an argument of `open_source`; other names are returned unchanged.

    A part of a selection or of decisions comes with the manifest that says what it has.

    Raises:
        InputError: If there is nothing, it may not be read, or the store cannot be reached.
        MissingExtraError: If the library of the store is not installed.
    """
    beside = (SELECTION.file, DECISIONS.file, UNFINISHED) if last_part(name) in PARTS else ()
    return local_name(name, beside=beside)


def _title(name: str) -> str:
    """The name of a dataset for its description: that of a file or folder without its path, or a URL."""
    return public_name(name) if is_url(name) else Path(name).resolve().name


def _is_local(name: str) -> bool:
    """Whether a name refers to files, even if there are none, rather than to a Hub dataset."""
    path = Path(name)
    looks_local = any(c in name for c in "*?[") or format_suffix(path) or name.startswith((".", "/", "~"))
    return bool(looks_local or path.exists() or _glob(name))


def _joined(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    return " + ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _open_local(
    names: Sequence[str], split: str | None, config: str | None, revision: str | None
) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    saved = [name for name in names if _is_saved(Path(name))]
    only_folders = all(Path(name).is_dir() for name in names)
    inapplicable = {
        "--split": None if only_folders else split,
        "--config": None if only_folders and not saved else config,
        "--revision": revision,
    }
    if options := [option for option, value in inapplicable.items() if value]:
        raise InputError(
            f"{' and '.join(options)} cannot be used with {_joined(names)}: give the files that you want instead"
        )
    if saved and len(names) > 1:
        raise InputError(f"{saved[0]} was written by save_to_disk: give it alone, or give data files")
    return _from_disk(names[0], split) if saved else _from_files(names, split, config)


def _is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def _from_files(
    names: Sequence[str], split: str | None, config: str | None
) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    groups = [_files(name, split, config) for name in names]
    files = [path for group in groups for path in group.files]
    _check_unique(files)
    digests = [file_digest(path) for path in files]
    read = [(name, read_file(path, digest)) for name, path, digest in zip(_names(files), files, digests, strict=True)]
    parts = [(name, dataset) for name, dataset in read if dataset is not None]
    config, split = _common("configurations", [g.config for g in groups]), _common("splits", [g.split for g in groups])
    # Only what distinguishes rows of this dataset, since row ids depend on the description.
    chosen = {key: value for key, value in (("config", config), ("split", split)) if value}
    return _aligned(parts), {**chosen, "files": len(files), "sha256": _joint_digest(digests)}


def _common(kind: str, values: Sequence[str | None]) -> str | None:
    """The split or configuration of all files, None if they have none."""
    found = list(dict.fromkeys(values))
    if len([value for value in found if value]) > 1:
        raise InputError(f"the folders have the {kind} {', '.join(filter(None, found))}: score them separately")
    return found[0] if len(found) == 1 else None


def _files(name: str, split: str | None, config: str | None) -> FolderFiles:
    """The data files that a name refers to."""
    path = Path(name)
    if path.is_dir():
        check_results(path)
        return folder_files(path, split=split, config=config)
    found = [path] if path.exists() else _matches(name)
    for file in found:
        check_regular(file)
    if wrong := [path.name for path in found if not format_suffix(path)]:
        raise InputError(f"wanted files ending in {READABLE}, got {', '.join(wrong[:SHOWN])}: convert them")
    return FolderFiles(files=tuple(found))


def _matches(pattern: str) -> list[Path]:
    """The files that match a glob, without hidden ones, unless the glob names them."""
    special = special_part(Path(pattern).relative_to(Path(pattern).anchor))
    found = sorted(_glob(pattern))
    found = [path for path in found if special or not special_part(path.relative_to(path.anchor))]
    if not found:
        raise InputError(f"no files match {pattern}: give a file, a folder, a glob or a Hub dataset id")
    return found


def _glob(pattern: str) -> list[Path]:
    """The paths that match a glob; the names of folders in it that exist are taken as they are."""
    folder = next((folder for folder in Path(pattern).parents if folder.is_dir()), Path())
    rest = Path(pattern).relative_to(folder)
    return [Path(path) for path in glob.glob(f"{glob.escape(str(folder))}/{rest}", recursive=True)]


def _check_unique(files: Sequence[Path]) -> None:
    """Refuse a file that is given twice, as by two overlapping globs: its rows would be scored twice."""
    count = Counter(path.resolve() for path in files)
    if twice := [path.name for path, times in count.items() if times > 1]:
        raise InputError(f"{', '.join(twice[:SHOWN])} is given more than once: give each file once")


def _names(files: Sequence[Path]) -> list[str]:
    """One shard name per file: its bare name, or its path below the common folder if bare names are not unique."""
    names = [bare_name(path) for path in files]
    if len(set(names)) == len(names):
        return names
    paths = [path.absolute() for path in files]
    folder = os.path.commonpath([path.parent for path in paths])
    return ["--".join(path.relative_to(folder).parts) for path in paths]


def _digest(files: Sequence[Path]) -> str:
    return _joint_digest([sha256(path) for path in files])


def _joint_digest(digests: Sequence[str]) -> str:
    """Hex SHA-256 of all files' contents in order, by their digests; for a single file, that of the file itself."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _aligned(parts: Sequence[tuple[str, Dataset]]) -> list[tuple[str, Dataset]]:
    """Cast all files to common types: a column without values in one file gets its type from the others."""
    for name, dataset in parts[1:]:
        first, wanted = parts[0]
        if set(dataset.column_names) != set(wanted.column_names):
            raise InputError(
                f"{name} has columns {sorted(dataset.column_names)}, but {first} has {sorted(wanted.column_names)}: "
                "use files with the same columns, or score them separately"
            )
    if all(dataset.features == parts[0][1].features for _, dataset in parts):
        return list(parts)
    try:
        schemas = [dataset.features.arrow_schema.remove_metadata() for _, dataset in parts]
        features = Features.from_arrow_schema(pa.unify_schemas(schemas, promote_options="permissive"))
        with silenced():
            return [(name, dataset.cast(features)) for name, dataset in parts]
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(
            f"types differ between files: {first_line(error)}; use files with the same types, or score them separately"
        ) from error


def _from_disk(name: str, split: str | None) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    check_name(Path(name))
    check_folder_files(Path(name))
    try:
        dataset, split = _one_split(load_from_disk(name), name, split)
        dataset.data.validate(full=True)  # a changed byte can be text that is not UTF-8, or a place outside of the file
    except (DatasetsError, pa.ArrowException, ValueError, TypeError, AttributeError, LookupError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {name} as save_to_disk wrote it: {first_line(error)}; save it again") from error
    return [(split, dataset)], {"split": split, "sha256": _digest(_mapped_files(dataset))}


def _mapped_files(dataset: Dataset) -> tuple[Path, ...]:
    return tuple(Path(file["filename"]) for file in dataset.cache_files)


def _one_split(data: Dataset | DatasetDict, name: str, split: str | None) -> tuple[Dataset, str]:
    """The split to read, and its name."""
    if isinstance(data, Dataset):
        data = DatasetDict({str(data.split or split or "train"): data})
    split = choose_split([str(key) for key in data], name, split)
    return data[split], split


def _source(parts: Sequence[tuple[str, Dataset]], limit: int | None, description: dict[str, Any]) -> Source:
    named = [part for name, dataset in _grouped(list(_limited(parts, limit))) for part in _split(name, dataset)]
    first = accumulate((len(rows) for _, rows in named), initial=0)
    pieces = tuple(Piece(name=name, rows=rows, first=start) for (name, rows), start in zip(named, first, strict=False))
    if len(pieces) > MOST_PIECES:
        raise InputError(
            f"wanted rows for at most {MOST_PIECES:,} shards, got {len(pieces):,}: score parts of the dataset into "
            "folders of their own"
        )
    names = [piece.name for piece in pieces]
    if len(set(names)) != len(names):
        raise InputError("several files would get the same shard name: score them separately, or rename them")
    return Source(pieces=pieces, description={**description, "limit": limit})


def _limited(parts: Sequence[tuple[str, Dataset]], limit: int | None) -> Iterator[tuple[str, Dataset]]:
    """The first ``limit`` rows of all parts together."""
    left = limit if limit is not None else sum(len(dataset) for _, dataset in parts)
    for name, dataset in parts:
        if left:
            yield name, dataset if len(dataset) <= left else dataset.select(range(left))
        left -= min(left, len(dataset))


def _grouped(parts: Sequence[tuple[str, Dataset]]) -> list[tuple[str, Dataset]]:
    """Join files of a few rows that follow each other, if there are many: a shard of one row costs as much as of many.

    Each group has the name of its first file and the number of the others.
    """
    if len(parts) <= MOST_SINGLE_FILES:
        return list(parts)
    groups: list[list[tuple[str, Dataset]]] = []
    size = 0
    for part in parts:
        size += len(part[1])
        if not groups or size > ROWS_PER_PIECE:
            groups.append([])
            size = len(part[1])
        groups[-1].append(part)
    return [group[0] if len(group) == 1 else _joined_files(group) for group in groups]


def _joined_files(parts: Sequence[tuple[str, Dataset]]) -> tuple[str, Dataset]:
    """Name and rows of several files, which have the same types."""
    # Not `concatenate_datasets`: comparing the features takes twice as long with each level of nesting.
    table = concat_tables([dataset.data for _, dataset in parts])
    return f"{parts[0][0]}+{len(parts) - 1}", Dataset(table, info=parts[0][1].info)


def _split(name: str, dataset: Dataset) -> Iterator[tuple[str, Dataset]]:
    """Names and rows of the pieces of a file, of at most `ROWS_PER_PIECE` rows and almost equal size."""
    count = max(1, -(-len(dataset) // ROWS_PER_PIECE))
    if count == 1:
        yield name, dataset
        return
    for index in range(count):
        yield f"{name}-{index:05d}-of-{count:05d}", dataset.shard(count, index, contiguous=True)
