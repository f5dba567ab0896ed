"""Open datasets by Hub id, folder, file or glob, and split them into pieces that are scored one by one."""

import glob
import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    get_dataset_config_names,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]  # httpx's or httpx2's

from larf_curate.data.tables import no_progress_bars
from larf_curate.errors import InputError
from larf_curate.files import sha256
from larf_curate.manifests import KINDS, PLAN

FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
"""Builder of `datasets` by file suffix."""
READ_OPTIONS = {"csv": {"index_col": False}}
"""By default, pandas takes the first column as an index if lines have more fields than the header."""
ROWS_PER_PIECE = 2_500
"""Small enough that a few thousand rows keep several processes busy, and an interruption loses little work."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A contiguous part of a source, which scoring writes as one shard.

    Args:
        name: File name of the shard, without suffix.
        rows: The rows.
    """

    name: str
    rows: Dataset


@dataclass(frozen=True, kw_only=True)
class Source:
    """A dataset, split into pieces.

    Args:
        pieces: The pieces, in row order.
        description: Provenance of the rows, as JSON values: name of the dataset, with its split, configuration and
            commit, or with the number of files and the digest of their content.
    """

    pieces: tuple[Piece, ...]
    description: dict[str, Any]

    @property
    def rows(self) -> int:
        """Total number of rows."""
        return sum(len(piece.rows) for piece in self.pieces)


def open_source(
    name: str,
    *,
    split: str | None = None,
    config: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
) -> Source:
    """Open a dataset.

    Args:
        name: A Hub id, a folder from ``save_to_disk``, a folder of data files, a file, or a glob.
        split: Split to open; required if there are several.
        config: Configuration of a Hub dataset; required if there are several and none is the default.
        revision: Commit, tag or branch of a Hub dataset; default: the latest commit.
        limit: Maximum number of rows, from the beginning; default: all.

    Returns:
        The source; each file becomes one piece, or several of at most `ROWS_PER_PIECE` rows. Files without rows are
        skipped.

    Raises:
        InputError: If there is no such dataset, it has no rows, a file cannot be read, columns or types differ between
            files, a split or configuration must be chosen, or an option does not apply to this kind of source.
    """
    files = _files(name)
    local = bool(files) or Path(name).is_dir()
    inapplicable = {"--split": split if files else None, "--config": config, "--revision": revision}
    if local and (options := [option for option, value in inapplicable.items() if value]):
        raise InputError(f"{' and '.join(options)} cannot be used with {name}: give the files that you want instead")
    if files:
        parts, description = _from_files(files)
    elif local:
        parts, description = _from_disk(name, split)
    else:
        parts, description = _from_hub(name, split, config, revision)
    if not any(len(dataset) for _, dataset in parts):
        raise InputError(f"{name} has no rows: check it, or give another dataset")
    return _source(parts, limit, {"dataset": name if not local else Path(name).resolve().name, **description})


def _files(name: str) -> list[Path]:
    """The data files that a name refers to; none if it is a ``save_to_disk`` folder or a Hub id."""
    path = Path(name)
    if path.is_file():
        found = [path]
    elif path.is_dir():
        saved = (path / "state.json").exists() or (path / "dataset_dict.json").exists()
        files = [p for p in path.rglob("*") if p.suffix.lower() in FORMATS and not p.name.startswith(".")]
        # The JSON files of a result folder are manifests, not data.
        found = [] if saved else sorted(p for p in files if p.name not in {PLAN, *(kind.file for kind in KINDS)})
        if not saved and not found:
            raise InputError(
                f"no {', '.join(FORMATS)} files in {name}, and save_to_disk did not write it: check the folder"
            )
    else:
        found = sorted(Path(p) for p in glob.glob(name, recursive=True))
        if not found and (any(c in name for c in "*?[") or path.suffix in FORMATS or name.startswith((".", "/", "~"))):
            raise InputError(f"no files match {name}: give a file, a folder, a glob or a Hub dataset id")
    if wrong := [p.name for p in found if p.suffix.lower() not in FORMATS]:
        raise InputError(f"wanted files ending in {', '.join(FORMATS)}, got {', '.join(wrong[:3])}: convert them")
    return found


def _from_files(files: Sequence[Path]) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    read = [(name, _read(path)) for name, path in zip(_names(files), files, strict=True)]
    parts = [(name, dataset) for name, dataset in read if dataset is not None]
    return _aligned(parts), {"files": len(files), "sha256": _digest(files)}


def _names(files: Sequence[Path]) -> list[str]:
    """One shard name per file: its stem, or its path below the common folder if stems are not unique."""
    stems = [path.stem for path in files]
    if len(set(stems)) == len(stems):
        return stems
    folder = os.path.commonpath([path.parent for path in files])
    return ["--".join(path.relative_to(folder).parts) for path in files]


def _digest(files: Sequence[str | Path]) -> str:
    """Hex SHA-256 of all files' contents in order; for a single file, that of the file itself."""
    digests = [sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _read(path: Path) -> Dataset | None:
    """Read a file; None if it has no rows."""
    kind = FORMATS[path.suffix.lower()]
    try:
        if not path.stat().st_size or (kind == "parquet" and not pq.read_metadata(path).num_rows):
            return None  # `datasets` fails on these with unrelated errors
        with silenced():
            builder = load_dataset_builder(kind, data_files=glob.escape(str(path)), **READ_OPTIONS.get(kind, {}))
            builder.download_and_prepare()
            if not builder.info.splits["train"].num_examples:
                return None
            dataset = builder.as_dataset("train")
        dataset.data.validate(full=True)  # finds text that is not UTF-8, which the JSON and Parquet readers accept
        return dataset
    except (DatasetsError, ValueError, TypeError, OSError) as error:
        raise InputError(
            f"cannot read {path.name} as {kind}: {_first_line(error.__cause__ or error)}; repair the file or omit it"
        ) from error


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
            f"types differ between files: {_first_line(error)}; use files with the same types, or score them separately"
        ) from error


def _from_disk(name: str, split: str | None) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    try:
        dataset, split = _one_split(load_from_disk(name), name, split)
    except (DatasetsError, ValueError, TypeError, LookupError, OSError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read {name} as save_to_disk wrote it: {_first_line(error)}; save it again") from error
    return [(split, dataset)], {"split": split, "sha256": _digest([file["filename"] for file in dataset.cache_files])}


def _one_split(data: Dataset | DatasetDict, name: str, split: str | None) -> tuple[Dataset, str]:
    """The split to read, and its name."""
    if isinstance(data, Dataset):
        data = DatasetDict({str(data.split or split or "train"): data})
    if split is None and len(data) == 1:
        split = next(iter(data))
    if split not in data:
        raise InputError(f"{name} has the splits {', '.join(data)}: choose one (--split)")
    return data[split], str(split)


def _from_hub(
    name: str, split: str | None, config: str | None, revision: str | None
) -> tuple[list[tuple[str, Dataset]], dict[str, Any]]:
    with _hub_errors(name, revision):
        # Resolve a branch or tag once, so that all requests read the same commit, and record it.
        commit = HfApi().dataset_info(name, revision=revision).sha
        configs = get_dataset_config_names(name, revision=commit)
        if config not in configs and (config or len(configs) > 1 and "default" not in configs):
            raise InputError(f"{name} has the configurations {', '.join(configs)}: choose one (--config)")
        splits = get_dataset_split_names(name, config, revision=commit)
        if split is None and len(splits) == 1:
            split = splits[0]
        if split not in splits:
            raise InputError(f"{name} has the splits {', '.join(splits)}: choose one (--split)")
        dataset = load_dataset(name, config, split=split, revision=commit)
    return [(str(split), dataset)], {"config": config, "split": split, "revision": commit}


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
    cause = _first_line(error.__cause__ or error)
    if isinstance(error, HfHubHTTPError):
        return f"the Hub rejected the request for {name!r} ({cause}): check HF_TOKEN, or try again later"
    if isinstance(error, TransportError | ConnectionError):
        return (
            f"no file or folder {name!r}, and the Hub cannot be reached ({cause}): check the connection, or give files"
        )
    return f"cannot read the Hub dataset {name!r}: {cause}; check the name, or give its data files instead"


def _first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def silenced() -> Iterator[None]:
    """Silence logs and progress bars of `datasets`: its failures become an `InputError`."""
    before = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with no_progress_bars(), warnings.catch_warnings():
            warnings.filterwarnings("error", "Length of header or names")  # from CSV files: fields would be lost
            yield
    finally:
        datasets.logging.set_verbosity(before)


def _source(parts: Sequence[tuple[str, Dataset]], limit: int | None, description: dict[str, Any]) -> Source:
    pieces = tuple(piece for name, dataset in _limited(parts, limit) for piece in _split(name, dataset))
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


def _split(name: str, dataset: Dataset) -> Iterator[Piece]:
    """Split the rows of a file into pieces of at most `ROWS_PER_PIECE` rows, of almost equal size."""
    count = max(1, -(-len(dataset) // ROWS_PER_PIECE))
    if count == 1:
        yield Piece(name=name, rows=dataset)
        return
    for index in range(count):
        rows = dataset.shard(count, index, contiguous=True)
        yield Piece(name=f"{name}-{index:05d}-of-{count:05d}", rows=rows)
