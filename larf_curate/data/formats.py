"""Files of rows: which endings are read, with which reader, and one clear error for a file that cannot be read."""

import glob
import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetInfo, Features, Value, load_dataset_builder
from datasets.exceptions import DatasetsError
from datasets.table import concat_tables

from larf_curate.data.dates import dates_as_texts
from larf_curate.data.numbers import check_integers, typed_columns
from larf_curate.data.screening import (
    CHUNK_BYTES,
    ExpandedSize,
    JsonScreen,
    LineScreen,
    TextScreen,
    check_parquet,
    check_regular,
    chunks_of,
)
from larf_curate.data.tables import as_stored, holds_media, no_progress_bars
from larf_curate.errors import InputError
from larf_curate.files import cache_home, sha256

FORMATS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""Builder of `datasets` by file suffix."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Codec by suffix of compressed text files, after the suffix of their format. Parquet files are compressed inside."""
READABLE = f"{', '.join(FORMATS)} (text files also with {' or '.join(COMPRESSIONS)})"
"""The endings that are read, for error messages."""
_CSV = {
    # By default, pandas takes the first column as an index if lines have more fields than the header,
    "index_col": False,
    # and the words None, NA, N/A, null and nan as missing values: in rows of text they are text. Only an empty field
    # is a missing value.
    "keep_default_na": False,
    "na_values": [""],
}
READER = 3
"""Version of the conversion of files to rows, part of the key of the cache."""
ROWS = "rows"
FEATURES = "larf_features.json"
"""Name of the file with the types of the columns, beside Arrow files in which media are plain structs."""
SCREENS: dict[str, type[TextScreen]] = {"json": JsonScreen, "csv": TextScreen}
"""Check of the bytes of a text file by builder."""
READ_OPTIONS: dict[str, dict[str, Any]] = {".csv": _CSV, ".tsv": {**_CSV, "sep": "\t"}}


def format_suffix(path: Path) -> str | None:
    """Suffix of a file's format, a key of `FORMATS`, without that of its compression; None for other files."""
    suffix = path.suffix.lower()
    if suffix not in COMPRESSIONS:
        return suffix if suffix in FORMATS else None
    inner = Path(path.stem).suffix.lower()
    return inner if inner in FORMATS and inner != ".parquet" else None


def bare_name(path: Path) -> str:
    """File name without the suffixes of format and compression."""
    return Path(path.stem).stem if path.suffix.lower() in COMPRESSIONS else path.stem


def file_digest(path: Path) -> str:
    """Hex SHA-256 of the content of a file of rows.

    Raises:
        InputError: If it is no regular file, or has a name of a text file and is none; a file of many gigabytes is not
            read to its end for that.
    """
    check_regular(path)
    if path.suffix.lower() in COMPRESSIONS or FORMATS.get(suffix := format_suffix(path) or "") not in SCREENS:
        return sha256(path)
    digest = hashlib.sha256()
    with _clear_errors(path, suffix):
        for chunk in LineScreen().watch(chunks_of(path)):
            digest.update(chunk)
    return digest.hexdigest()


def read_file(path: Path, digest: str | None = None) -> Dataset | None:
    """Read a file of rows.

    The rows are cached by the content of the file: neither its name nor the time of its last change counts.

    Args:
        path: The file; its name may have any characters, also those of globs.
        digest: Its `file_digest`, if already known.

    Returns:
        The rows; None if there are none.

    Raises:
        InputError: If the file cannot be read, changes while it is read, or has numbers that would be rounded.
    """
    check_regular(path)
    suffix = format_suffix(path)
    if suffix is None:
        raise InputError(f"wanted a file ending in {READABLE}, got {path.name}: convert it")
    with _clear_errors(path, suffix):
        digest = digest or file_digest(path)
        folder = _rows_folder(digest, suffix, path.suffix)
        if not folder.exists():
            with _new_folder(folder) as temporary:
                _convert(path, suffix, temporary)
                if sha256(path) != digest:
                    raise InputError(f"{path.name} changed while it was read: read it again when it is complete")
        return _cached_rows(folder)


@contextmanager
def _clear_errors(path: Path, suffix: str) -> Iterator[None]:
    """Convert errors of readers to one that names the file."""
    try:
        yield
    except (DatasetsError, pa.ArrowException, ValueError, TypeError, OSError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot read {path.name} as {FORMATS[suffix]}: {first_line(error.__cause__ or error)}; repair the file or "
            "omit it"
        ) from error


def _rows_folder(digest: str, *suffixes: str) -> Path:
    """Folder in the cache for the rows of a file: what is read also depends on its format and on the reader."""
    reader = [READER, datasets.__version__, pa.__version__, *suffixes]
    return cache_home() / "rows" / f"{digest}-{hashlib.sha256(json.dumps(reader).encode()).hexdigest()[:16]}"


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes its name when it is complete, unless another process was faster."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".tmp", dir=folder.parent))
    try:
        yield temporary
        with suppress(OSError):  # it exists: its content is the same
            (temporary / ROWS).replace(folder)
        if not folder.exists():
            raise OSError(f"cannot write {folder}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _convert(path: Path, suffix: str, folder: Path) -> None:
    """Convert a file to Arrow files in ``folder/rows``; without rows, that folder is empty."""
    plain = folder / f"file{suffix}"  # a name without characters that mean something to `datasets` and fsspec
    kind = FORMATS[suffix]
    if path.suffix.lower() in COMPRESSIONS:
        _decompress(path, plain, SCREENS[kind]())
    else:
        plain.symlink_to(path.absolute())
        if kind in SCREENS:
            _screen(plain, SCREENS[kind]())
    (folder / ROWS).mkdir()
    if not plain.stat().st_size or (kind == "parquet" and not pq.read_metadata(plain).num_rows):
        return  # `datasets` fails on these with unrelated errors
    options = {"batch_size": check_parquet(plain, folder)} if kind == "parquet" else READ_OPTIONS.get(suffix, {})
    with silenced():
        rows = _builder_rows(plain, kind, options, folder / "raw")
        if rows is None:
            return
        if kind == "json":
            check_integers(plain, rows.features)
            rows = dates_as_texts(rows, plain, folder / "texts")
        if kind == "csv":
            features = typed_columns(rows)
            rows = rows.cast(features) if features != rows.features else rows
        rows.data.validate(full=True)  # finds text that is not UTF-8, which the JSON and Parquet readers accept
        if not holds_media(rows.features):
            rows.save_to_disk(folder / ROWS)
            return
        as_stored(rows).save_to_disk(folder / ROWS)
    (folder / ROWS / FEATURES).write_text(json.dumps(rows.features.to_dict()), encoding="utf-8")


def _builder_rows(path: Path, kind: str, options: Mapping[str, Any], folder: Path) -> Dataset | None:
    """The rows as `datasets` reads them, those of CSV files as texts."""
    if kind == "csv":
        names = pd.read_csv(path, nrows=0, **options).columns
        options = {**options, "features": Features({str(name): Value("string") for name in names})}
    data_files = glob.escape(str(path))
    builder = load_dataset_builder(kind, data_files=data_files, cache_dir=str(folder), **options)
    builder.download_and_prepare()
    return builder.as_dataset("train") if builder.info.splits["train"].num_examples else None


def _screen(path: Path, screen: TextScreen) -> None:
    for _ in screen.watch(chunks_of(path)):
        pass


def _decompress(path: Path, target: Path, screen: TextScreen) -> None:
    """Decompress a file: `datasets` does too, but needs another package for Zstandard."""
    compression = COMPRESSIONS[path.suffix.lower()]
    size = ExpandedSize(target.parent)
    with pa.input_stream(str(path), compression=compression) as stream, target.open("wb") as plain:
        for chunk in screen.watch(iter(partial(stream.read, CHUNK_BYTES), b"")):
            size.add(len(chunk))
            plain.write(chunk)


def _cached_rows(folder: Path) -> Dataset | None:
    """Rows of the Arrow files of a folder, which all have the same features."""
    # `datasets` keeps results of `shuffle` and `map` beside the rows, as cache-*.arrow.
    files = sorted(path for path in folder.glob("*.arrow") if not path.name.startswith("cache-"))
    with silenced():
        parts = [Dataset.from_file(str(path)) for path in files]
    if not parts:
        return None
    # Not `concatenate_datasets`: comparing the features takes twice as long with each level of nesting.
    table = concat_tables([part.data for part in parts])
    if not (folder / FEATURES).exists():
        return Dataset(table, info=parts[0].info)
    features = Features.from_dict(json.loads((folder / FEATURES).read_text(encoding="utf-8")))
    return Dataset(table.replace_schema_metadata(None), info=DatasetInfo(features=features))


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


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
