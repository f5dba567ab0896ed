"""Pushing records to the server in batches; repeated pushes neither duplicate records nor lose responses."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from larf_curate.review.argilla.connection import RejectedError
from larf_curate.review.argilla.dataset import MAX_FILTER_VALUES, RecordStore
from larf_curate.review.argilla.settings import (
    ASSIGNED,
    LEARNED_SCORE,
    MACHINE_SCORE,
    PROPOSED,
    SCORE,
    THIRD_PERSON,
)
from larf_curate.review.records.evidence import learned_block, with_learned
from larf_curate.review.records.record import CONTENT_DIGEST, OUTDATED_RESPONSES, RECORD_DIGEST, SAMPLING, Record

BATCH_ROWS = 500
"""Records per request, the server's limit."""
BATCH_BYTES = 8_000_000
"""Largest size of a request: 500 long conversations could be 100 MB, which the server would read into memory."""


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """Result of a push; the four counts and the failed rows add up to the rows given.

    Args:
        pushed: Number of rows that are new on the server.
        updated: Number of rows that had changed and were replaced; their responses are kept.
        unchanged: Number of rows that were on the server already.
        failed: Row id and reason of each row that the server rejects.
        grouped: Number of rows that were not sent because the decision on a near-duplicate applies to them.
        url: Address of the queue in the browser, sorted worst first.
    """

    pushed: int
    updated: int
    unchanged: int
    failed: tuple[tuple[str, str], ...]
    url: str
    grouped: int = 0


@dataclass
class Push:
    """One push, with the counts of its `PushResult`.

    Args:
        store: The review dataset.
        existing: Records on the server, by row id.
        grouped: Number of rows that are not sent because a near-duplicate is.
    """

    store: RecordStore
    existing: Mapping[str, Mapping[str, Any]]
    grouped: int = 0
    pushed: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def run(self, records: Iterable[Record]) -> PushResult:
        """Send the records that are new or changed.

        Args:
            records: The records to push, made lazily.

        Raises:
            ReviewServerError: If the server stops responding; what was sent stays there, and a later push sends the
                rest.
        """
        with ThreadPoolExecutor(1) as sender:  # the next batch is made while the server processes this one
            sending: Future[None] | None = None
            for batch in json_batches(self._changed(records)):
                if sending:
                    sending.result()  # one request at a time, and its errors are raised here
                sending = sender.submit(self._send, batch)
            if sending:
                sending.result()
        return PushResult(
            pushed=self.pushed,
            updated=self.updated,
            unchanged=self.unchanged,
            failed=tuple(self.failed),
            url=self.store.url,
            grouped=self.grouped,
        )

    def _changed(self, records: Iterable[Record]) -> Iterator[Record]:
        """The records to send; those whose content changed list the responses to the earlier content as outdated."""
        for batch in equal_batches(records, MAX_FILTER_VALUES):
            changed = [record for record in batch if not self._is_unchanged(record)]
            self.unchanged += len(batch) - len(changed)
            rewritten = {record["external_id"] for record in changed if self._has_new_content(record)}
            # Responses are read just before the content is replaced: reviewers may be working in the meantime.
            responses = self.store.responses(sorted(rewritten)) if rewritten else {}
            for record in changed:
                kept = record if self._has_new_content(record) else self._with_learned(record)
                kept = self._with_sampling(kept)
                yield self._with_outdated_responses(kept, responses.get(record["external_id"], ()))

    def _metadata(self, record: Record) -> Mapping[str, Any]:
        """Metadata of a record on the server; empty if it is new."""
        existing = self.existing.get(record["external_id"], {})
        return existing.get("metadata") or {}  # the server may give null

    def _is_unchanged(self, record: Record) -> bool:
        return bool(self._metadata(record).get(RECORD_DIGEST) == record["metadata"][RECORD_DIGEST])

    def _has_new_content(self, record: Record) -> bool:
        return record["external_id"] in self.existing and (
            self._metadata(record).get(CONTENT_DIGEST) != record["metadata"][CONTENT_DIGEST]
        )

    def _with_learned(self, record: Record) -> Record:
        """The record with what was learned of it, unless its machine score is another one by now."""
        before = self._metadata(record)
        if LEARNED_SCORE not in before or before.get(MACHINE_SCORE) != record["metadata"].get(MACHINE_SCORE):
            return record
        learned = {name: before[name] for name in (SCORE, LEARNED_SCORE)}
        said = learned_block(str(self.existing[record["external_id"]]["fields"].get("evidence") or ""))
        fields = record["fields"] | {"evidence": with_learned(record["fields"]["evidence"], said)}
        return record | {"metadata": record["metadata"] | learned, "fields": fields}

    def _with_sampling(self, record: Record) -> Record:
        """The record, with its places in the sample that an earlier push drew."""
        places = {SAMPLING: self._metadata(record)[SAMPLING]} if SAMPLING in self._metadata(record) else {}
        return record | {"metadata": places | record["metadata"]}

    def _with_outdated_responses(self, record: Record, responses: Iterable[Mapping[str, Any]]) -> Record:
        """The record, with the responses to earlier contents in its metadata, so that they are never applied to it.

        Its people and marks stay: an update replaces all metadata of a record.
        """
        before = self._metadata(record)
        outdated = dict(before.get(OUTDATED_RESPONSES) or {})
        outdated |= {response["id"]: response["updated_at"] for response in responses}
        kept = {name: before[name] for name in (ASSIGNED, THIRD_PERSON, PROPOSED) if name in before}
        kept |= {OUTDATED_RESPONSES: outdated} if outdated else {}
        return record | {"metadata": record["metadata"] | kept} if kept else record

    def _send(self, batch: list[tuple[str, bytes]]) -> None:
        """Send a batch; if the server rejects it, send each half, so that only the invalid records are left out."""
        try:
            self.store.upsert(json_items(batch))
        except RejectedError as error:
            if len(batch) == 1:
                self.failed.append((batch[0][0], str(error)))
                return
            half = len(batch) // 2
            self._send(batch[:half])
            self._send(batch[half:])
        else:
            updated = sum(row_id in self.existing for row_id, _ in batch)
            self.updated += updated
            self.pushed += len(batch) - updated


def json_items(batch: Iterable[tuple[str, bytes]]) -> bytes:
    """The body of a request that sends a batch of `json_batches`."""
    return b'{"items":[' + b",".join(body for _, body in batch) + b"]}"


def equal_batches(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Split records lazily into batches of ``size``; the last one may be shorter."""
    stream = iter(records)
    while batch := list(islice(stream, size)):
        yield batch


def json_batches(records: Iterable[Record]) -> Iterator[list[tuple[str, bytes]]]:
    """Encode records as JSON in batches of at most ``BATCH_ROWS`` records and ``BATCH_BYTES`` bytes.

    A single record may be larger than ``BATCH_BYTES``.

    Returns:
        Lists of pairs of row id and JSON.
    """
    batch: list[tuple[str, bytes]] = []
    size = 0
    for record in records:
        body = json.dumps(record, allow_nan=False).encode()
        if batch and (len(batch) == BATCH_ROWS or size + len(body) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((record["external_id"], body))
        size += len(body)
    if batch:
        yield batch
