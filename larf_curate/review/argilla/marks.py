"""Marks on records: metadata terms by which a link shows part of a queue."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from larf_curate.errors import InputError
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
    wanted = {}
    for record in records:
        terms = set(terms_of(record, PROPOSED))
        wanted[record["external_id"]] = terms | {term} if record["external_id"] in rows else terms - {term}
    set_terms(store, records, PROPOSED, PROPOSED_TITLE, wanted)


def set_terms(
    store: RecordStore,
    records: Iterable[Mapping[str, Any]],
    name: str,
    title: str,
    wanted: Mapping[str, Collection[str]],
) -> int:
    """Set the terms of a metadata property that annotators can filter by; it is created if it is missing.

    Args:
        store: The review dataset.
        records: Its records, as returned by the server.
        name: Name of the property.
        title: Title shown to annotators.
        wanted: The terms by row id; other records are left as they are.

    Returns:
        Number of records that changed.
    """
    store.add_property(name, title, "terms")
    changed = {}
    for record in records:
        terms = wanted.get(record["external_id"])
        # Only records whose terms change are written: an update replaces all metadata of a record.
        if terms is not None and set(terms) != set(terms_of(record, name)):
            metadata = {key: value for key, value in (record["metadata"] or {}).items() if key != name}
            changed[record["external_id"]] = metadata | ({name: sorted(terms)} if terms else {})
    store.update_metadata(changed)
    return len(changed)


def terms_of(record: Mapping[str, Any], name: str) -> list[str]:
    """The terms of a metadata property of a record."""
    return list((record["metadata"] or {}).get(name) or ())


def term_of(username: str) -> str:
    """The term that stands for a person; links separate terms by full stops, which names may have.

    Raises:
        InputError: If a link cannot hold the name.
    """
    if not re.fullmatch(r"[\w.@-]+", username):
        raise InputError(f"wanted a user name of letters, digits and . _ - @, got {username[:80]!r}")
    return username.replace(".", ":")


def username_of(term: str) -> str:
    """The person that a term stands for."""
    return term.replace(":", ".")
