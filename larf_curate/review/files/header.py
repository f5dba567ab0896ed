"""The first row of a table with decisions, and the texts of its cells."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from larf_curate.errors import InputError
from larf_curate.review.files.cells import unescape, unescape_id
from larf_curate.review.files.line import DIGEST, READ, ROW, Line

GARBLED_MARK = "\u00ef\u00bb\u00bf"
"""The byte order mark of UTF-8, read as Windows-1252."""
WANTED = (ROW, DIGEST, "decision")
"""Columns that a table must have."""


def column(name: object) -> str:
    """The name of a column as it was exported, whatever the case and spaces."""
    text = str(name if name is not None else "").removeprefix("\ufeff").removeprefix(GARBLED_MARK)
    return "_".join(text.strip(' "').lower().split())


def read_header(names: Sequence[object], path: Path) -> list[str]:
    """The names of the columns.

    Raises:
        InputError: If one is missing or twice there.
    """
    header = [column(name) for name in names]
    if missing := [name for name in WANTED if name not in header]:
        got = ", ".join(name for name in header if name)[:200] or "none"
        raise InputError(
            f"{path.name} has no column {' and no column '.join(missing)} (columns: {got}): give a file that review "
            "export or the review page wrote, with its first row"
        )
    if twice := [name for name in READ if header.count(name) > 1]:
        raise InputError(f"{path.name} has the column {twice[0]} twice: remove one of them")
    return header


def is_garbled(header: Sequence[object]) -> bool:
    """Whether a program has opened a CSV file in UTF-8 as Windows-1252: its byte order mark is then three letters."""
    return str(header[0] if header else "").startswith(GARBLED_MARK)


def garbled(line: Line) -> Line:
    """A line of such a file; its texts are as they were if they are ASCII."""
    wrong = [name for name in READ if not line[name].isascii()]
    problem = f"{wrong[0]} may be garbled: a program opened the CSV file as Windows-1252, wanted UTF-8" if wrong else ""
    return replace(line, cells={name: line[name] for name in READ}, problem=line.problem or problem)


def cell_text(column: str, cell: str) -> str:
    """The text of a cell as it was before it was escaped."""
    return unescape_id(cell) if column == ROW else unescape(cell)
