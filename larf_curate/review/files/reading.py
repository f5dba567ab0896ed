"""Read files with decisions: tables as spreadsheets save them, exports of Label Studio, and what the page saves."""

import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.data.screening import check_parquet
from larf_curate.errors import InputError
from larf_curate.files import check_readable, parse_json
from larf_curate.review.files import label_studio
from larf_curate.review.files.header import WANTED, cell_text, column, garbled, is_garbled, read_header
from larf_curate.review.files.line import DIGEST, PAGE_KIND, READ, ROW, SHOWN, Line, parse_time
from larf_curate.review.files.workbook import workbook_lines

logger = logging.getLogger(__name__)
MAX_BYTES = 2**31
"""Maximum size of a file that is read."""
MAX_LINES = 2**22
"""Most rows of a Parquet file: rows without values take memory and no space."""
DELIMITERS = ",;\t"


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
            header = read_header(first, path)
            for number, cells in enumerate(rows, 2):
                if any(cells):
                    line = _table_line(header, cells, f"{path.name}, row {number}")
                    yield garbled(line) if is_garbled(first) else line
        except csv.Error as error:
            raise InputError(f"{path} is no complete CSV file ({error}): save it again from the spreadsheet") from error


def _table_line(header: Sequence[str], cells: Sequence[str], place: str) -> Line:
    texts = {name: cell_text(name, cell) for name, cell in zip(header, cells, strict=False) if name in (*READ, *SHOWN)}
    differ = len(cells) != len(header)
    problem = f"has {len(cells)} cells, wanted {len(header)}" if differ else ""
    return Line(place=place, cells=texts, problem=problem)


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
        if set(WANTED) <= set(map(column, header)):
            return mark
    read_header(max(headers.values(), key=len), path)
    raise AssertionError("the columns are there after all")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module read fields of any length; by default, one of 131,073 characters is an error."""
    before = csv.field_size_limit(MAX_BYTES - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _from_jsonl(path: Path) -> Iterator[Line]:
    for number, text in enumerate(_decoded(path).split("\n"), 1):
        if text.strip():
            yield _object_line(parse_json(text, f"{path.name}, line {number}"), f"{path.name}, line {number}")


def _object_line(value: object, place: str) -> Line:
    """A line of an object whose keys are the columns; numbers become texts, as of the user who annotated."""
    value = {column(name): cell for name, cell in value.items()} if isinstance(value, dict) else {}
    if not set(WANTED) - {"decision"} <= set(value):
        raise InputError(f"wanted {ROW} and {DIGEST} in {place}, got none: give a file that review export wrote")
    found = {name: value[name] for name in (*READ, *SHOWN) if value.get(name) is not None}
    wrong = [name for name, cell in found.items() if isinstance(cell, bool | float | dict | list)]
    problem = f"wanted a text in {wrong[0]}, got {json.dumps(found[wrong[0]])[:40]}" if wrong else ""
    near = [] if "decision" in value else get_close_matches("decision", value, 1)
    problem = f"has {near[0]}, wanted decision" if near else problem
    return Line(place=place, cells={name: str(cell) for name, cell in found.items()}, problem=problem)


def _from_parquet(path: Path) -> Iterator[Line]:
    if (rows := pq.read_metadata(path).num_rows) > MAX_LINES:
        raise InputError(f"{path.name} has {rows:,} rows, wanted at most {MAX_LINES:,}: give one that was exported")
    schema = pq.read_schema(path)
    header = read_header(schema.names, path)
    names = {name: schema.names[header.index(name)] for name in (*READ, *SHOWN) if name in header}
    try:
        check_parquet(path, path.parent)
        table = pq.read_table(path, columns=list(names.values())).to_pylist()
    except ValueError as error:
        raise InputError(f"cannot read {path} ({error}): give a file that was exported") from error
    for number, row in enumerate(table, 1):
        line = _object_line({name: row[given] for name, given in names.items()}, f"{path.name}, row {number}")
        cells = {name: cell_text(name, cell) for name, cell in line.cells.items()}
        yield Line(place=line.place, cells=cells, problem=line.problem)


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


_READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    ".csv": _from_csv,
    ".tsv": _from_csv,
    ".txt": _from_csv,
    ".jsonl": _from_jsonl,
    ".parquet": _from_parquet,
    ".xlsx": workbook_lines,
    ".json": _from_json,
}
