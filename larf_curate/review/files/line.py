"""One line of a file with decisions, and the names of its columns."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

ROW, DIGEST = "larf_row_id", "content_digest"
READ = (ROW, DIGEST, "decision", "corrected_answer", "comment", "annotator")
"""Columns that are read back."""
SHOWN = ("text", "answer")
"""Columns that are compared with the rows, to tell people who edited them that it has no effect."""
COLUMNS = (ROW, "score", "text", "evidence", "answer", "decision", "corrected_answer", "comment", "annotator", DIGEST)
"""Columns of a table, in their order."""
PAGE_KIND = "larf-curate review page"
"""Value of ``kind`` in the files that the review page saves."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a file: a row and, if it is filled in, what one annotator decided on it.

    Args:
        place: Where it is, for messages, as in ``maria.csv, row 3``.
        cells: Texts by column; columns that are missing are empty.
        time: When it was decided, if the file tells.
        discarded: Whether the annotator has discarded the row.
        problem: What is wrong with a cell that cannot be a text.
    """

    place: str
    cells: Mapping[str, str]
    time: datetime | None = None
    discarded: bool = False
    problem: str = ""

    def __getitem__(self, column: str) -> str:
        return self.cells.get(column, "")


def parse_time(text: object) -> datetime | None:
    """A time in ISO 8601, in UTC if it has no offset; None if it is none."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
