"""The beginning of rows in a queue, for lists in a terminal."""

from collections.abc import Collection, Iterable, Mapping
from html import unescape
from typing import Any

from larf_curate.review.records.folding import is_folded

MAX_CHARACTERS = 70
"""Characters shown of the request, and of the answer."""


def row_texts(records: Iterable[Mapping[str, Any]], rows: Collection[str]) -> dict[str, str]:
    """Request and answer of some rows, each shortened, on one line: those with the score, else the last ones.

    Args:
        records: Records as returned by the server.
        rows: Row ids.

    Returns:
        Texts by row id; control characters are those of the row.
    """
    return {record["external_id"]: _text(record) for record in records if record["external_id"] in rows}


def _text(record: Mapping[str, Any]) -> str:
    messages = (record["fields"] or {}).get("conversation") or []
    shown = [str(message["content"]) for message in messages if not is_folded(str(message["content"]))]
    return " → ".join(_shortened(unescape(content)) for content in shown[-2:])


def _shortened(text: str) -> str:
    words = " ".join(text[: 10 * MAX_CHARACTERS].split())
    return words if len(words) <= MAX_CHARACTERS else words[: MAX_CHARACTERS - 1] + "…"
