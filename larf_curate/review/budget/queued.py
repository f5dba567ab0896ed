"""Samples in the records of a queue: read, written, and what is left by them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from larf_curate.errors import InputError
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.decisions.merge import Decision, MergeRule, merge_records
from larf_curate.review.decisions.responses import ReviewedRecord
from larf_curate.review.learning.ranking import POSITIVE
from larf_curate.review.records.record import DECIDED_TOGETHER, SAMPLING, Record
from larf_curate.review.sampling.left import Left, left_harmful
from larf_curate.review.sampling.stage import Sampled, read_sampling

logger = logging.getLogger(__name__)


def sampling_of(records: Iterable[ReviewedRecord]) -> Sampled:
    """The sample that a queue was pushed with; empty without one.

    Raises:
        InputError: See `read_sampling`.
    """
    return read_sampling(record.sampling for record in records if record.sampling)


def labels_of(decisions: Iterable[Decision]) -> dict[str, bool | None]:
    """Labels of the rows that are read: decided, discarded or in conflict; people remove or edit harmful rows."""
    labels: dict[str, bool | None] = {}
    for row in decisions:
        if row.status in ("decided", "conflict"):
            labels[row.row_id] = None if row.decision in (None, "unsure") else row.decision in POSITIVE
        elif row.status == "pending" and row.discards and not row.annotators:
            labels[row.row_id] = None
    return labels


def left_of(records: Sequence[ReviewedRecord]) -> Left | None:
    """Estimate how many harmful rows are left; annotators' answers are merged by majority.

    Args:
        records: All records of a queue.

    Returns:
        None without a sample, and, with a warning, if the records carry a damaged one.
    """
    try:
        sampled = sampling_of(records)
    except InputError as error:
        logger.warning("how many harmful rows are left cannot be estimated: %s", error)
        return None
    if not sampled.stages:
        return None
    labels = labels_of(merge_records(records, MergeRule.parse("majority")))
    left = left_harmful(sampled, labels)
    return replace(left, uncounted=len(labels.keys() - sampled.rows.keys()))


def with_sampling(record: Record, sampled: Sampled) -> Record:
    """A record with its places in a sample; unchanged without any."""
    places = _places(record["external_id"], record["metadata"], sampled)
    return record | {"metadata": record["metadata"] | {SAMPLING: places}} if places else record


def update_sampling(store: RecordStore, records: Iterable[Mapping[str, Any]], sampled: Sampled) -> None:
    """Write the places of rows to the records that were in the queue before.

    Args:
        store: The review dataset.
        records: The records, as returned by the server.
        sampled: The sample.
    """
    changed = {}
    for record in records:
        metadata = record["metadata"] or {}
        places = _places(record["external_id"], metadata, sampled)
        if places and places != metadata.get(SAMPLING):
            changed[record["external_id"]] = {**metadata, SAMPLING: places}
    if changed:
        store.update_metadata(changed)


def _places(row: str, metadata: Mapping[str, Any], sampled: Sampled) -> dict[str, Any] | None:
    carried = sampled.of_rows([row, *(metadata.get(DECIDED_TOGETHER) or {})])
    return carried.to_metadata() if carried.rows else None
