"""Files of rows: which endings are read, with which reader, and one clear error for a file that cannot be read."""

import glob
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset_builder
from datasets.exceptions import DatasetsError

from larf_curate.data.tables import no_progress_bars
from larf_curate.errors import InputError
from larf_curate.files import atomic_path, cache_home, sha256

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


def read_file(path: Path) -> Dataset | None:
    """Read a file of rows.

    Args:
        path: The file; its name may have any characters, also those of globs.

    Returns:
        The rows; None if there are none.

    Raises:
        InputError: If the file cannot be read.
    """
    suffix = format_suffix(path)
    if suffix is None:
        raise InputError(f"wanted a file ending in {READABLE}, got {path.name}: convert it")
    try:
        plain = _decompressed(path, suffix) if path.suffix.lower() in COMPRESSIONS else path
        return _read(plain, FORMATS[suffix], READ_OPTIONS.get(suffix, {}))
    except (DatasetsError, ValueError, TypeError, OSError) as error:
        raise InputError(
            f"cannot read {path.name} as {FORMATS[suffix]}: {first_line(error.__cause__ or error)}; repair the file or "
            "omit it"
        ) from error


def _decompressed(path: Path, suffix: str) -> Path:
    """A decompressed copy in the cache, under the digest of the file.

    `datasets` decompresses too, but fails on file names with brackets, and needs another package for Zstandard.
    """
    copy = cache_home() / "decompressed" / f"{sha256(path)}{suffix}"
    if not copy.exists():
        compression = COMPRESSIONS[path.suffix.lower()]
        with pa.input_stream(str(path), compression=compression) as stream, atomic_path(copy) as temporary:
            with temporary.open("wb") as target:
                shutil.copyfileobj(stream, target)
    return copy


def _read(path: Path, kind: str, options: dict[str, Any]) -> Dataset | None:
    if not path.stat().st_size or (kind == "parquet" and not pq.read_metadata(path).num_rows):
        return None  # `datasets` fails on these with unrelated errors
    with silenced():
        builder = load_dataset_builder(kind, data_files=glob.escape(str(path)), **options)
        builder.download_and_prepare()
        if not builder.info.splits["train"].num_examples:
            return None
        dataset = builder.as_dataset("train")
    dataset.data.validate(full=True)  # finds text that is not UTF-8, which the JSON and Parquet readers accept
    return dataset


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
