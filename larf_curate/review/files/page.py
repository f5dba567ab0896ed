"""The review page: one self-contained HTML file to decide on flagged rows alone, without a server."""

import json
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from larf_curate.errors import InputError
from larf_curate.files import atomic_path
from larf_curate.html import csp_hash
from larf_curate.review.argilla.settings import DECISIONS, DEGRADING, MEANINGS
from larf_curate.review.files.line import PAGE_KIND
from larf_curate.review.files.rows import ReviewRow, review_rows, rows_digest
from larf_curate.scoring.selection import Selection

PAGES = (".html", ".htm")


def write_review_page(selection: Selection, path: str | Path) -> Path:
    """Write a page on which one person decides on the flagged rows by keyboard, and saves a file for the import.

    It requests nothing and sends nothing: its Content-Security-Policy allows its own script and style only. Texts of
    rows are data, never HTML. The browser keeps decisions by selection, where it keeps anything for files.

    Args:
        selection: The selection.
        path: The HTML file; an existing one is replaced.

    Returns:
        The path of the file.

    Raises:
        InputError: If it does not end in .html, or the rows have no unique ids.
    """
    path = Path(path)
    if path.suffix.lower() not in PAGES:
        raise InputError(f"wanted a file ending in .html, got {path.name}: give another name with -o")
    page = _rendered(list(review_rows(selection)), title=_title(selection))
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def _rendered(rows: list[ReviewRow], *, title: str) -> str:
    environment = Environment(
        loader=PackageLoader("larf_curate", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["csp_hash"] = csp_hash
    templates = files("larf_curate") / "templates"
    script, style = (Markup((templates / name).read_text(encoding="utf-8")) for name in ("review.js", "review.css"))
    return environment.get_template("review.html.j2").render(
        title=title.encode("utf-8", "replace").decode(),
        rows=len(rows),
        decisions=list(DECISIONS.items()),
        meanings=MEANINGS,
        degrading=DEGRADING,
        data=_data(rows),
        script=script,
        style=style,
    )


def _data(rows: list[ReviewRow]) -> Markup:
    """The rows as JSON in ASCII that cannot end the script element it is in."""
    content = {
        "kind": PAGE_KIND,
        "digest": rows_digest(rows),
        "decisions": list(DECISIONS),
        "rows": [
            {
                "id": row.row_id,
                "digest": row.content_digest,
                "turns": row.turns,
                "evidence": row.evidence,
                "answer": row.answer,
            }
            for row in rows
        ],
    }
    escaped = json.dumps(content).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(escaped)


def _title(selection: Selection) -> str:
    return str((selection.scored.get("source") or {}).get("dataset") or "flagged rows")
