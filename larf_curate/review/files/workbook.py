"""Read XLSX workbooks with decisions, in bounded memory whatever a workbook says of itself."""

import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from larf_curate.errors import InputError
from larf_curate.extras import require
from larf_curate.review.files.cells import from_ooxml
from larf_curate.review.files.header import WANTED, cell_text, column, garbled, is_garbled, read_header
from larf_curate.review.files.line import READ, SHOWN, Line

FREE_EXPANSION = 2**26
"""Number of bytes to which any workbook may expand."""
MAX_EXPANSION = 100
"""Largest ratio of its parts to the workbook, beyond `FREE_EXPANSION`; text is compressed about tenfold."""
MAX_CELLS = 2**22
"""Most cells of a sheet from the first to the last that is in use: each takes memory, empty ones too."""


def workbook_lines(path: Path) -> Iterator[Line]:
    """The lines of the sheet with decisions.

    Raises:
        InputError: If the workbook is damaged or expands to too much, or no sheet or several have decisions.
        MissingExtraError: If openpyxl is not installed.
    """
    book = _opened(path)
    if not book.worksheets:
        raise InputError(f"{path.name} has no sheet with cells: give a file that review export wrote")
    for sheet in book.worksheets:
        _check_size(sheet, path)
    sheets = [sheet for sheet in book.worksheets if _has_columns(sheet)]
    if len(sheets) > 1:
        names = ", ".join(sheet.title for sheet in sheets)
        raise InputError(f"{path.name} has {len(sheets)} sheets with decisions ({names}): keep one of them")
    sheet = sheets[0] if sheets else book.worksheets[0]
    first = _first_row(sheet)
    header = read_header(first, path)
    _check_unmerged(sheet, header, path)
    for number, cells in enumerate(sheet.iter_rows(min_row=2, max_col=len(header)), 2):
        if any(cell.value is not None for cell in cells):
            line = _sheet_line(header, cells, f"{path.name}, row {number}")
            yield garbled(line) if is_garbled(first) else line


def _opened(path: Path) -> Any:  # noqa: ANN401  a workbook of openpyxl
    openpyxl = require("openpyxl", extra="xlsx")
    try:
        _check_expansion(path)
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations, which are not read
            return openpyxl.load_workbook(file)
    except Exception as error:  # openpyxl and the parsers below it raise anything on damaged files
        raise InputError(f"cannot read {path} ({error}): save it again as an XLSX workbook") from error


def _check_expansion(path: Path) -> None:
    """Check what the parts of a workbook expand to; zipfile reads no more of them than they record."""
    with zipfile.ZipFile(path) as archive:
        size = sum(part.file_size for part in archive.infolist())
    most = max(FREE_EXPANSION, MAX_EXPANSION * path.stat().st_size)
    if size > most:
        raise ValueError(f"it expands to {size:,} bytes, wanted at most {most:,}")


def _check_size(sheet: Any, path: Path) -> None:  # noqa: ANN401  a sheet of openpyxl
    rows, columns = sheet.max_row, len(_first_row(sheet))
    if rows * columns > MAX_CELLS:
        raise InputError(
            f"the sheet {sheet.title} of {path.name} has {rows:,} rows and {columns:,} columns: delete those that are "
            "empty, or save it as CSV"
        )


def _first_row(sheet: Any) -> list[Any]:  # noqa: ANN401  a sheet of openpyxl
    """The values of the first row, up to the last one that is not empty."""
    values = list(next(sheet.iter_rows(max_row=1, values_only=True), ()))
    while values and values[-1] is None:
        values.pop()
    return values


def _has_columns(sheet: Any) -> bool:  # noqa: ANN401  a sheet of openpyxl
    return set(WANTED) <= set(map(column, _first_row(sheet)))


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
            texts[name] = cell_text(name, from_ooxml(cell.value))
        elif isinstance(cell.value, int) and not isinstance(cell.value, bool):
            texts[name] = str(cell.value)
        elif name in READ:
            kinds = {"f": "a formula", "e": "an error", "d": "a date", "n": "a number", "b": "a truth value"}
            problem = f"{name} is {kinds.get(cell.data_type, 'no text')} ({str(cell.value)[:40]}), wanted text"
    return Line(place=place, cells=texts, problem=problem)
