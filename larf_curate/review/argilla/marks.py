"""Marks on records: metadata terms by which a link shows part of a queue."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.argilla.settings import PROPOSED, PROPOSED_TITLE


def mark(store: RecordStore, records: Iterable[Mapping[str, Any]], term: str, rows: Collection[str]) -> None:
    """Mark exactly these records with a term that annotators can filter by; the term is removed from all others.

    Args:
        store: The review dataset.
        records: All its records, as returned by the server.
        term: The mark; a record can have several.
        rows: Row ids of the records to mark.
    """
    store.add_property(PROPOSED, PROPOSED_TITLE, "terms")
    changed = {}
    for record in records:
        metadata = dict(record["metadata"] or {})
        terms = set(metadata.pop(PROPOSED, ()))
        # Only records whose terms change are written: an update replaces all metadata of a record.
        wanted = terms | {term} if record["external_id"] in rows else terms - {term}
        if wanted != terms:
            changed[record["external_id"]] = metadata | ({PROPOSED: sorted(wanted)} if wanted else {})
    store.update_metadata(changed)
