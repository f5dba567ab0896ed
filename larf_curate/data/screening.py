"""Files checked before a reader sees them: readers crash, hang or take any amount of memory on some."""

import codecs
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from larf_curate.errors import InputError
from larf_curate.files import HOME, cache_home

MAX_NESTING = 60
"""Maximum nesting of lists and objects in a JSON row: Arrow's types may be nested 64 deep, and its reader crashes on
rows that are nested thousands deep."""
MAX_ROW_BYTES = 64 * 2**20
"""Maximum size of a row. It is sixteen million tokens, over any context; readers take up to a hundred
times the size of a row as memory."""
MAX_LIST_BYTES = 2**30
"""Maximum size of a JSON file that is one list, which must fit into memory as a whole."""
DISK_SHARE = 3
"""A compressed file may expand to one of this number of equal parts of the free disk space: its rows are stored too."""
PARQUET_ROWS = 25
"""Number of rows of a Parquet file that are decoded together: a small file can have millions of large ones."""
MAX_PARQUET_ROWS = 1000
"""Number of rows of a Parquet file that are decoded together once it is known that they are small."""
PARQUET_BYTES = 4 * 2**20
"""Approximate size of rows that are decoded together once their sizes are known: `datasets` decodes 16 times as many in
advance."""
FREE_EXPANSION = 2**30
"""Number of bytes to which any Parquet file may expand."""
MAX_EXPANSION = 1000
"""Largest ratio of rows to the Parquet file that they are in, beyond `FREE_EXPANSION`; values that many rows share
are stored once, but no row consists of them alone."""
CHUNK_BYTES = 2**20
"""Size of the parts in which files are checked."""
HEADS = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "compressed with gzip",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard",
    b"\xfd7zXZ": "compressed with xz",
    b"BZh": "compressed with bzip2",
    b"\x04\x22\x4d\x18": "compressed with LZ4",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF-": "a PDF document",
    b"\x89PNG": "a picture",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
"""What a file is that begins with these bytes."""
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
"""What is no regular file, by its type."""
Places = NDArray[np.intp]


def check_regular(path: Path) -> None:
    """Check that a path is a regular file, without opening it: a pipe would wait for ever.

    Raises:
        InputError: If it is not, does not exist, or has a name that is not UTF-8.
    """
    check_name(path)
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        reason = "a link to nothing" if path.is_symlink() else f"not readable ({error.strerror})"
        raise InputError(f"{path} is {reason}, wanted a file: correct or remove it") from error
    if kind != stat.S_IFREG:
        raise InputError(
            f"{path} is {KINDS.get(kind, 'something else')}, wanted a file: write its content to a file, or remove it"
        )


def check_name(path: Path) -> None:
    """Check that a path is UTF-8, which results have to be that name it.

    Raises:
        InputError: If it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {ascii(str(path))} is not UTF-8: rename it") from error


def check_folder_files(folder: Path) -> None:
    """Check with `check_regular` all that is in a folder and its subfolders, except folders."""
    for root, _, names in os.walk(folder):
        for name in names:
            check_regular(Path(root, name))


def chunks_of(path: Path) -> Iterator[bytes]:
    """The content of a file in parts."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


class ExpandedSize:
    """Counts the bytes that a compressed file expands to, against the free disk space.

    Args:
        folder: Folder that the rows are stored in.
    """

    def __init__(self, folder: Path) -> None:
        self._left = shutil.disk_usage(folder).free // DISK_SHARE

    def add(self, count: int) -> None:
        """Count bytes.

        Raises:
            ValueError: If the file expands to over a third of the free disk space.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError(
                f"it expands to over a third of the free disk space of {cache_home()}: free some, or set {HOME}"
            )


def check_parquet(path: Path, folder: Path) -> int:
    """Check the sizes of the rows of a Parquet file: those that it records, then those of the rows as they are decoded.

    Args:
        path: The file.
        folder: Folder that the rows are to be stored in.

    Returns:
        Number of rows that can be decoded together.

    Raises:
        ValueError: If a row is too large, or the file expands to too much.
        pa.ArrowException: If it is damaged.
    """
    file, size, start, largest = pq.ParquetFile(path), ExpandedSize(folder), 0, 0
    most = max(FREE_EXPANSION, MAX_EXPANSION * path.stat().st_size)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    if any(group.total_byte_size > max(group.num_rows, 1) * MAX_ROW_BYTES for group in groups):
        raise ValueError(f"its rows are larger than {MAX_ROW_BYTES >> 20} MiB on average")
    for batch in map(_decoded, file.iter_batches(batch_size=PARQUET_ROWS)):
        size.add(batch.nbytes)
        _check_batch(batch, start)
        start, most, largest = start + len(batch), most - batch.nbytes, max(largest, batch.nbytes)
        if most < 0:
            raise ValueError(
                f"its rows are over {MAX_EXPANSION:,} times as large as the file: write them as JSON lines"
            )
    # Tables of one row are gathered by `datasets`, as it writes them, until it has a thousand.
    return max(2, min(MAX_PARQUET_ROWS, PARQUET_ROWS * PARQUET_BYTES // max(largest, 1)))


def _decoded(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with plain values for columns that are stored as dictionaries, as `datasets` reads them."""
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _check_batch(batch: pa.RecordBatch, start: int) -> None:
    """Check the sizes of decoded rows, of which the first has the number ``start``."""
    if batch.nbytes <= MAX_ROW_BYTES:
        return
    for row in range(len(batch)):
        if batch.slice(row, 1).nbytes > MAX_ROW_BYTES:
            raise ValueError(f"row {start + row} is larger than {MAX_ROW_BYTES >> 20} MiB")


class TextScreen:
    """Checks the bytes of a text file in passing: that they are text, and that no line is too long."""

    def __init__(self) -> None:
        self._offset = 0
        self._lines = 0
        self._row = (0, 1)  # offset of the row that has not ended, and its line

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Pass on the parts of a file after they are checked.

        Raises:
            ValueError: If it is not text, or a row is too large; the message has the number of the line, from 1.
        """
        for chunk in chunks:
            if not self._offset:
                _check_head(chunk)
            if (place := chunk.find(b"\0")) >= 0:
                raise ValueError(f"line {self._line(chunk, place)} has a NUL byte, wanted text in UTF-8")
            self._check(chunk)
            self._offset += len(chunk)
            self._lines += chunk.count(b"\n")
            yield chunk

    def _check(self, chunk: bytes) -> None:
        self._check_rows(chunk, np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")) + 1)

    def _check_rows(self, chunk: bytes, starts: Places) -> None:
        """Check the sizes of rows, by the places of a chunk at which new ones start."""
        start, line = self._row
        places = np.concatenate([[start - self._offset], starts, [len(chunk)]])
        sizes = np.diff(places)
        if sizes.max() > MAX_ROW_BYTES:
            first = int(sizes.argmax())
            line = line if first == 0 else self._line(chunk, int(places[first]))
            raise ValueError(f"the row in line {line} is larger than {MAX_ROW_BYTES >> 20} MiB")
        if len(starts):
            self._row = (self._offset + int(starts[-1]), self._line(chunk, int(starts[-1])))

    def _line(self, chunk: bytes, place: int) -> int:
        """Number of the line that a place of a chunk is in, from 1."""
        return self._lines + chunk.count(b"\n", 0, place) + 1


class LineScreen(TextScreen):
    """Checks, as fast as a file is read, for what is no row: a NUL byte, as in a hole, or an endless line."""

    def _check(self, chunk: bytes) -> None:
        if (place := chunk.rfind(b"\n")) >= 0:
            self._row = (self._offset + place + 1, 0)
        elif self._offset + len(chunk) - self._row[0] > MAX_LIST_BYTES:  # a JSON list may be one line
            raise ValueError(f"line {self._lines + 1} is larger than {MAX_LIST_BYTES >> 30} GiB")


class JsonScreen(TextScreen):
    """Checks the bytes of a JSON file in passing: lines of objects, one object, or one list of objects or of texts.

    The structure of the text is found with NumPy, since a loop over its characters would take longer than reading it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._base: int | None = None  # depth at which there are rows: 0, or 1 in a list
        self._has_objects = True
        self._head = b""

    def _check(self, chunk: bytes) -> None:
        self._begin(chunk)
        text = b" " + chunk[1:] if self._escaped else chunk
        self._escaped = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
        before = self._depth
        places, levels = self._structure(text)
        self._check_levels(chunk, places, levels)
        if self._has_objects:
            self._check_between(chunk, places, np.concatenate([[before], levels]))
            opening = np.diff(levels, prepend=before) > 0
            self._check_rows(chunk, places[opening & (levels - 1 == (self._base or 0))])
        if self._base and self._offset + len(chunk) > MAX_LIST_BYTES:
            raise ValueError(f"it is one list larger than {MAX_LIST_BYTES >> 30} GiB, wanted one object per line")

    def _begin(self, chunk: bytes) -> None:
        """Find out from the first characters whether a file is one list, and of what."""
        if self._base is not None:
            return
        self._head = _content(self._head + chunk)[:CHUNK_BYTES]
        if not self._head.startswith(b"["):
            self._base = 0 if self._head else None
        elif item := _content(self._head[1:])[:1]:
            if item not in b'{"]':
                raise ValueError("wanted lines of objects, or one list of objects or of texts, got another list")
            self._base, self._has_objects = 1, item != b'"'

    def _structure(self, text: bytes) -> tuple[Places, Places]:
        """Places of the brackets outside of strings, and the depth after each."""
        if b"\\" in text:
            text = text.replace(rb"\\", b"  ").replace(rb"\"", b"  ")
        codes = np.frombuffer(text, np.uint8)
        quotes, newlines = (np.flatnonzero(codes == ord(sign)) for sign in '"\n')
        folded = codes | 32  # brackets become braces
        brackets = np.flatnonzero((folded == ord("{")) | (folded == ord("}")))
        # A string ends with its line at the latest: so an error in one line does not hide the structure of the next.
        line = np.searchsorted(newlines, brackets)
        first = np.concatenate([[0], np.searchsorted(quotes, newlines)])
        opened = np.searchsorted(quotes, brackets) - first[line] + (self._in_string & (line == 0))
        self._in_string = bool((len(quotes) - first[-1] + (self._in_string and not len(newlines))) % 2)
        places = brackets[opened % 2 == 0]
        levels = self._depth + np.cumsum(np.where(folded[places] == ord("{"), 1, -1))
        self._depth = int(levels[-1]) if len(levels) else self._depth
        return places, levels

    def _check_levels(self, chunk: bytes, places: Places, levels: Places) -> None:
        wrong = np.flatnonzero((levels > MAX_NESTING) | (levels < 0))
        if len(wrong):
            line = self._line(chunk, int(places[wrong[0]]))
            if levels[wrong[0]] < 0:
                raise ValueError(f"line {line} closes a bracket that is not open")
            raise ValueError(f"line {line} has lists and objects nested over {MAX_NESTING} deep")

    def _check_between(self, chunk: bytes, places: Places, levels: Places) -> None:
        """Check that between rows there is white space, and a comma in a list; ``levels`` are before each place."""
        starts, ends = np.concatenate([[0], places + 1]), np.concatenate([places, [len(chunk)]])
        allowed = (b"", b",") if self._base else (b"",)
        outside = levels == (self._base or 0)
        for start, end in zip(starts[outside].tolist(), ends[outside].tolist(), strict=True):
            if chunk[start:end] != b"\n" and (found := _content(chunk[start:end])) not in allowed:
                line = self._line(chunk, end - len(found))
                got = ascii(found[:20].decode("utf-8", "replace"))
                raise ValueError(f"line {line} has {got} outside of an object, wanted one object per row")


def _content(text: bytes) -> bytes:
    """Text without white space around it, and without a byte order mark."""
    return text.removeprefix(codecs.BOM_UTF8).strip(b" \t\r\n")


def _check_head(head: bytes) -> None:
    """Check that a file does not begin as files of other formats do, whatever its name."""
    for start, kind in HEADS.items():
        if head.startswith(start):
            raise ValueError(
                f"the file is {kind}, wanted text in UTF-8: give it the ending of its format, or convert it"
            )
