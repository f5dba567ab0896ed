"""Write the flagged rows of a selection for review: CSV, JSON lines, Parquet, XLSX, or tasks of Label Studio."""

import csv
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from larf_curate.errors import InputError
from larf_curate.extras import require
from larf_curate.files import atomic_path
from larf_curate.progress import progress
from larf_curate.review.argilla.settings import DECISIONS
from larf_curate.review.files import label_studio
from larf_curate.review.files.cells import SHOWN_UNITS, escape, escape_id, fits, to_ooxml
from larf_curate.review.files.line import COLUMNS, DIGEST, ROW
from larf_curate.review.files.rows import ReviewRow, review_rows
from larf_curate.review.records.escaping import truncate_middle
from larf_curate.scoring.selection import Selection

logger = logging.getLogger(__name__)
SHEET = "Review"
"""Name of the sheet of a workbook."""
FILLED_IN = ("decision", "corrected_answer", "comment", "annotator")
WIDTHS = {ROW: 14, "score": 8, "text": 80, "evidence": 40, "answer": 60, "decision": 12, "corrected_answer": 60}
"""Widths of the columns of a workbook in characters; others have that of ``DIGEST``."""
Cells = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The result of an export.

    Args:
        path: The file.
        rows: Number of rows in it, all flagged rows of the selection.
        cut: Ids of the rows whose text or answer is longer than a cell of a spreadsheet and shown in part.
        config: The labeling configuration of Label Studio, if it was written.
    """

    path: Path
    rows: int
    cut: tuple[str, ...] = ()
    config: Path | None = None


def export_review(selection: Selection, path: str | Path) -> Exported:
    """Write the flagged rows with empty columns for decisions, which `import_decisions` reads.

    Args:
        selection: The selection.
        path: The file, which must not exist: it may hold decisions. Its ending is the format: ``.csv``, ``.jsonl``,
            ``.parquet``, ``.xlsx``, or ``.json`` for tasks of Label Studio, whose labeling configuration is written
            beside them with the ending ``.xml``.

    Raises:
        InputError: If the file exists or has another ending, or the rows have no unique ids.
        MissingExtraError: If openpyxl is needed and not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        raise InputError(f"wanted a file ending in {', '.join(_WRITERS)}, got {path.name}: give another name with --to")
    config = path.with_suffix(".xml") if path.suffix.lower() == ".json" else None
    for file in filter(None, (path, config)):
        if file.exists():
            raise InputError(f"{file} exists, and may hold decisions: give another name, or move it")
    if path.suffix.lower() == ".xlsx":
        require("openpyxl", extra="xlsx")
    rows = list(progress(review_rows(selection), label="Read", unit="row"))
    with atomic_path(path) as temporary:
        cut = _WRITERS[path.suffix.lower()](rows, temporary)
    if config:
        with atomic_path(config) as temporary:
            temporary.write_text(label_studio.CONFIG, encoding="utf-8")
    return Exported(path=path, rows=len(rows), cut=tuple(cut), config=config)


def shown_cells(row: ReviewRow, *, first: bool = False) -> dict[str, str]:
    """The texts of a row as a spreadsheet shows them, escaped and cut to what a cell holds.

    Args:
        row: The row.
        first: Whether to escape what would begin a formula in a CSV file.
    """
    texts = {"text": row.text, "evidence": row.evidence, "answer": row.answer or ""}
    return {name: escape(_cut(text), first=first) for name, text in texts.items()}


def _cut(text: str) -> str:
    """A text that fits into a cell of a spreadsheet after it is escaped."""
    while not fits(to_ooxml(escape(text))):
        units = len(text) * SHOWN_UNITS // len(to_ooxml(escape(text)).encode("utf-16-le", "surrogatepass")) * 2
        text = truncate_middle(text, max(units - 200, 1000))  # the note of what is missing takes some
    return text


def _write_csv(rows: Sequence[ReviewRow], path: Path) -> list[str]:
    # With a byte order mark, without which Excel reads UTF-8 as the code page of the machine.
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {ROW: escape_id(row.row_id), "score": row.score, DIGEST: row.content_digest}
                | shown_cells(row, first=True)
            )
    return _too_long(rows)


def _write_jsonl(rows: Sequence[ReviewRow], path: Path) -> list[str]:
    with path.open("wb") as file:
        for row in rows:
            line = json.dumps(_complete(row), ensure_ascii=False)
            file.write(line.encode("utf-8", "backslashreplace") + b"\n")  # a lone surrogate is \ud800 in JSON too
    return []


def _write_parquet(rows: Sequence[ReviewRow], path: Path) -> list[str]:
    cells = [
        {name: escape(value) if isinstance(value, str) else value for name, value in _complete(row).items()}
        for row in rows
    ]
    schema = pa.schema([(name, pa.float64() if name == "score" else pa.string()) for name in COLUMNS])
    pq.write_table(pa.Table.from_pylist(cells, schema=schema), path)
    return []


def _write_label_studio(rows: Sequence[ReviewRow], path: Path) -> list[str]:
    path.write_bytes(
        json.dumps(label_studio.tasks(rows), ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace")
    )
    return []


def _write_xlsx(rows: Sequence[ReviewRow], path: Path) -> list[str]:
    openpyxl = require("openpyxl", extra="xlsx")
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet(SHEET)
    sheet.freeze_panes = "B2"
    for letter, name in zip("ABCDEFGHIJ", COLUMNS, strict=True):
        sheet.column_dimensions[letter].width = WIDTHS.get(name, 20)
    choices = openpyxl.worksheet.datavalidation.DataValidation(
        type="list", formula1=f'"{",".join(DECISIONS)}"', allow_blank=True, showErrorMessage=True
    )
    choices.add(f"F2:F{max(len(rows), 1) + 1}")
    sheet.data_validations.append(choices)
    sheet.append([_text_cell(openpyxl, sheet, name, bold=True) for name in COLUMNS])
    for row in rows:
        cells = shown_cells(row) | dict.fromkeys(FILLED_IN, "")
        cells |= {ROW: escape_id(row.row_id), DIGEST: row.content_digest}
        sheet.append([row.score if name == "score" else _text_cell(openpyxl, sheet, cells[name]) for name in COLUMNS])
    book.save(path)
    return _too_long(rows)


def _text_cell(openpyxl: Any, sheet: Any, text: str, *, bold: bool = False) -> Any:  # noqa: ANN401  of openpyxl
    """A cell that is text whatever it says, and stays text when it is edited."""
    cell = openpyxl.cell.WriteOnlyCell(sheet, to_ooxml(text))
    if text:
        cell.data_type = "s"  # openpyxl takes a text that begins with = for a formula
    cell.number_format = "@"
    cell.alignment = openpyxl.styles.Alignment(wrap_text=True, vertical="top")
    if bold:
        cell.font = openpyxl.styles.Font(bold=True)
    return cell


def _complete(row: ReviewRow) -> dict[str, Any]:
    """The columns of a row without a limit of length."""
    values = {ROW: row.row_id, "score": row.score, "text": row.text, "evidence": row.evidence, "answer": row.answer}
    return {name: (values | {DIGEST: row.content_digest}).get(name) for name in COLUMNS}


def _too_long(rows: Sequence[ReviewRow]) -> list[str]:
    """Ids of the rows that are shown in part."""
    return [row.row_id for row in rows if any(_cut(text) != text for text in (row.text, row.answer or ""))]


_WRITERS: dict[str, Callable[[Sequence[ReviewRow], Path], list[str]]] = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    ".xlsx": _write_xlsx,
    ".json": _write_label_studio,
}
