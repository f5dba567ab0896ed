"""Marks on records, so that a link can show some of a queue alone."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.argilla.settings import PROPOSED, PROPOSED_TITLE


def mark(store: RecordStore, records: Iterable[Mapping[str, Any]], term: str, rows: Collection[str]) -> None:
    """Mark these records, and no others, with a term that annotators can filter by.

    Args:
        store: The queue.
        records: All its records as the server gave them.
        term: The mark; a record can have several.
        rows: Row ids of those to mark.
    """
    store.add_property(PROPOSED, PROPOSED_TITLE, "terms")
    changed = {}
    for record in records:
        metadata = dict(record["metadata"] or {})
        terms = set(metadata.pop(PROPOSED, ()))
        wanted = terms | {term} if record["external_id"] in rows else terms - {term}
        if wanted != terms:
            changed[record["external_id"]] = metadata | ({PROPOSED: sorted(wanted)} if wanted else {})
    store.update_metadata(changed)
