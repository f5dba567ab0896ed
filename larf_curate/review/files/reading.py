"""Read files with decisions: tables as spreadsheets save them, exports of Label Studio, and what the page saves."""

import csv
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.errors import InputError
from larf_curate.extras import require
from larf_curate.files import check_readable, parse_json
from larf_curate.review.files import label_studio
from larf_curate.review.files.cells import from_ooxml, unescape, unescape_id
from larf_curate.review.files.line import DIGEST, PAGE_KIND, READ, ROW, SHOWN, Line, parse_time

logger = logging.getLogger(__name__)
MAX_BYTES = 2**31
"""Maximum size of a file that is read."""
DELIMITERS = ",;\t"
GARBLED_MARK = "\u00ef\u00bb\u00bf"
"""The byte order mark of UTF-8, read as Windows-1252."""
WANTED = (ROW, DIGEST, "decision")
"""Columns that a table must have."""


def read_lines(path: str | Path) -> list[Line]:
    """Read the lines of a file with decisions, in the form that its ending says.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.txt`` table in UTF-8, UTF-16 or Windows-1252, with commas, semicolons or tabs;
            a ``.jsonl``, ``.parquet`` or ``.xlsx`` table; or a ``.json`` file of Label Studio or of the review page.

    Raises:
        InputError: If it cannot be read, or is no such file.
        MissingExtraError: If openpyxl is needed and not installed.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"cannot read {path.name}: wanted a file ending in {', '.join(_READERS)}: save it as one")
    try:
        check_readable(path, MAX_BYTES)
        return list(reader(path))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {path} ({str(error).splitlines()[0]}): give a file that was exported") from error


def _from_csv(path: Path) -> Iterator[Line]:
    text = _decoded(path)
    if text[:4].lower() == "sep=":  # a line that tells Excel the delimiter
        text = text.partition("\n")[2]
    with _long_fields():
        delimiter = _delimiter(text, path)
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            first = next(rows)
            header = _header(first, path)
            for number, cells in enumerate(rows, 2):
                if any(cells):
                    line = _table_line(header, cells, f"{path.name}, row {number}")
                    yield _garbled(line) if _is_garbled(first) else line
        except csv.Error as error:
            raise InputError(f"{path} is no complete CSV file ({error}): save it again from the spreadsheet") from error


def _table_line(header: Sequence[str], cells: Sequence[str], place: str) -> Line:
    texts = {name: _text(name, cell) for name, cell in zip(header, cells, strict=False) if name in (*READ, *SHOWN)}
    differ = len(cells) != len(header)
    problem = f"has {len(cells)} cells, wanted {len(header)}" if differ else ""
    return Line(place=place, cells=texts, problem=problem)


def _is_garbled(header: Sequence[object]) -> bool:
    """Whether a program has opened a CSV file in UTF-8 as Windows-1252: its byte order mark is then three letters."""
    return str(header[0] if header else "").startswith(GARBLED_MARK)


def _garbled(line: Line) -> Line:
    """A line of such a file; its texts are as they were if they are ASCII."""
    wrong = [name for name in READ if not line[name].isascii()]
    problem = f"{wrong[0]} may be garbled: a program opened the CSV file as Windows-1252, wanted UTF-8" if wrong else ""
    return replace(line, cells={name: line[name] for name in READ}, problem=line.problem or problem)


def _text(column: str, cell: str) -> str:
    return unescape_id(cell) if column == ROW else unescape(cell)


def _decoded(path: Path) -> str:
    """The text of a file in one of the encodings in which spreadsheets save."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in content[:200]:
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-16-be"
    else:
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        pass
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is neither UTF-8, UTF-16 nor Windows-1252 ({error}): save it as CSV in UTF-8"
        ) from error
    logger.warning("%s is not UTF-8, so it is read as Windows-1252: check umlauts, or save it as CSV in UTF-8", path)
    return text


def _delimiter(text: str, path: Path) -> str:
    """The delimiter with which the first row has the columns that are needed."""
    headers = {mark: next(csv.reader(io.StringIO(text, newline=""), delimiter=mark), []) for mark in DELIMITERS}
    for mark, header in headers.items():
        if set(WANTED) <= set(map(_column, header)):
            return mark
    _header(max(headers.values(), key=len), path)
    raise AssertionError("the columns are there after all")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields of any length; by default, one of 131,073 characters is an error."""
    before = csv.field_size_limit(MAX_BYTES - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _column(name: object) -> str:
    """The name of a column as it was exported, whatever the case and spaces."""
    text = str(name if name is not None else "").removeprefix("\ufeff").removeprefix(GARBLED_MARK)
    return "_".join(text.strip(' "').lower().split())


def _header(names: Sequence[object], path: Path) -> list[str]:
    """The names of the columns.

    Raises:
        InputError: If one is missing or twice there.
    """
    header = [_column(name) for name in names]
    if missing := [name for name in WANTED if name not in header]:
        got = ", ".join(name for name in header if name)[:200] or "none"
        raise InputError(
            f"{path.name} has no column {' and no column '.join(missing)} (columns: {got}): give a file that review "
            "export or the review page wrote, with its first row"
        )
    if twice := [name for name in READ if header.count(name) > 1]:
        raise InputError(f"{path.name} has the column {twice[0]} twice: remove one of them")
    return header


def _from_jsonl(path: Path) -> Iterator[Line]:
    for number, text in enumerate(_decoded(path).split("\n"), 1):
        if text.strip():
            yield _object_line(parse_json(text, f"{path.name}, line {number}"), f"{path.name}, line {number}")


def _object_line(value: object, place: str) -> Line:
    """A line of an object whose keys are the columns; numbers become texts, as of the user who annotated."""
    if not isinstance(value, dict) or not set(WANTED) - {"decision"} <= set(value):
        raise InputError(f"wanted {ROW} and {DIGEST} in {place}, got none: give a file that review export wrote")
    found = {name: value[name] for name in (*READ, *SHOWN) if value.get(name) is not None}
    wrong = [name for name, cell in found.items() if isinstance(cell, bool | float | dict | list)]
    problem = f"wanted a text in {wrong[0]}, got {json.dumps(found[wrong[0]])[:40]}" if wrong else ""
    return Line(place=place, cells={name: str(cell) for name, cell in found.items()}, problem=problem)


def _from_parquet(path: Path) -> Iterator[Line]:
    schema = pq.read_schema(path)
    header = _header(schema.names, path)
    names = {name: schema.names[header.index(name)] for name in (*READ, *SHOWN) if name in header}
    rows = pq.read_table(path, columns=list(names.values())).to_pylist()
    for number, row in enumerate(rows, 1):
        line = _object_line({name: row[given] for name, given in names.items()}, f"{path.name}, row {number}")
        yield Line(
            place=line.place,
            cells={name: _text(name, cell) for name, cell in line.cells.items()},
            problem=line.problem,
        )


def _from_json(path: Path) -> Iterator[Line]:
    value = parse_json(_decoded(path), path)
    if isinstance(value, dict) and value.get("kind") == PAGE_KIND:
        yield from _page_lines(value, path)
        return
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, 1):
        if label_studio.is_task(item):
            if ROW not in item["data"]:
                raise InputError(
                    f"task {number} of {path.name} has no {ROW}: it is of another project; export the one into which "
                    "the tasks of review export were imported"
                )
            yield from label_studio.annotation_lines(item, f"{path.name}, task {number}")
        else:
            yield _object_line(item, f"{path.name}, item {number}")


def _page_lines(saved: Mapping[str, Any], path: Path) -> Iterator[Line]:
    """The decisions that the review page saved."""
    decisions = saved.get("decisions")
    if saved.get("version") != 1 or not isinstance(decisions, list):
        raise InputError(f"{path.name} was saved by another version of the review page: write the page again")
    for number, item in enumerate(decisions, 1):
        line = _object_line(item, f"{path.name}, decision {number}")
        yield Line(
            place=line.place,
            cells={"annotator": str(saved.get("annotator") or "")} | dict(line.cells),
            time=parse_time(item.get("time")),
            problem=line.problem,
        )


def _from_xlsx(path: Path) -> Iterator[Line]:
    openpyxl = require("openpyxl", extra="xlsx")
    try:
        book = openpyxl.load_workbook(path)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {path} ({error}): save it again as an XLSX workbook") from error
    sheets = [sheet for sheet in book.worksheets if _has_columns(sheet)]
    if len(sheets) > 1:
        names = ", ".join(sheet.title for sheet in sheets)
        raise InputError(f"{path.name} has {len(sheets)} sheets with decisions ({names}): keep one of them")
    sheet = sheets[0] if sheets else book.worksheets[0]
    rows = sheet.iter_rows()
    first = [cell.value for cell in next(rows, ())]
    header = _header(first, path)
    _check_unmerged(sheet, header, path)
    for number, cells in enumerate(rows, 2):
        if any(cell.value is not None for cell in cells):
            line = _sheet_line(header, cells, f"{path.name}, row {number}")
            yield _garbled(line) if _is_garbled(first) else line


def _has_columns(sheet: Any) -> bool:  # noqa: ANN401  a sheet of openpyxl
    first = next(sheet.iter_rows(max_row=1, values_only=True), ())
    return set(WANTED) <= set(map(_column, first))


def _check_unmerged(sheet: Any, header: Sequence[str], path: Path) -> None:  # noqa: ANN401  a sheet of openpyxl
    """Refuse merged cells in the columns that are read: they hold one value for several rows or columns."""
    for merged in sheet.merged_cells.ranges:
        if any(name in READ for name in header[merged.min_col - 1 : merged.max_col]):
            raise InputError(
                f"{path.name} has merged cells ({merged.coord}), which hold one value for several cells: unmerge them "
                "and fill in each"
            )


def _sheet_line(header: Sequence[str], cells: Sequence[Any], place: str) -> Line:
    """A line of a sheet; a cell that is a formula, an error or a date is no text."""
    texts, problem = {}, ""
    for name, cell in zip(header, cells, strict=False):
        if name not in (*READ, *SHOWN) or cell.value is None:
            continue
        if isinstance(cell.value, str) and (cell.data_type == "s" or name in SHOWN):
            texts[name] = _text(name, from_ooxml(cell.value))
        elif isinstance(cell.value, int) and not isinstance(cell.value, bool):
            texts[name] = str(cell.value)
        elif name in READ:
            kinds = {"f": "a formula", "e": "an error", "d": "a date", "n": "a number", "b": "a truth value"}
            problem = f"{name} is {kinds.get(cell.data_type, 'no text')} ({str(cell.value)[:40]}), wanted text"
    return Line(place=place, cells=texts, problem=problem)


_READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    ".csv": _from_csv,
    ".tsv": _from_csv,
    ".txt": _from_csv,
    ".jsonl": _from_jsonl,
    ".parquet": _from_parquet,
    ".xlsx": _from_xlsx,
    ".json": _from_json,
}
