"""Records to the server: in batches, again and again without doubling or losing anything."""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from larf_curate.review.argilla.connection import RejectedError
from larf_curate.review.argilla.dataset import MAX_FILTER_VALUES, RecordStore
from larf_curate.review.records.record import CONTENT, OUTDATED, RECORD, Record

BATCH_ROWS = 500
BATCH_BYTES = 8_000_000


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """What a push did; the five counts add up to the rows given.

    Args:
        pushed: Rows that were new on the server.
        updated: Rows that had changed and were replaced; their responses stay.
        unchanged: Rows that were already there.
        failed: Rows that the server refuses: row id and reason.
        grouped: Rows that were not sent because the decision on a near-identical one serves them.
        url: The queue in the browser, worst first.
    """

    pushed: int
    updated: int
    unchanged: int
    failed: tuple[tuple[str, str], ...]
    url: str
    grouped: int = 0


@dataclass
class Push:
    """One run over the rows.

    Args:
        store: Where they go.
        known: The records already there, by row id.
        grouped: Rows that near-identical ones stand for.
    """

    store: RecordStore
    known: Mapping[str, Mapping[str, Any]]
    grouped: int = 0
    pushed: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)

    def run(self, records: Iterable[Record]) -> PushResult:
        """Send what is new or changed.

        Raises:
            ReviewServerError: If the server stops answering; what was sent stays, and the next run goes on.
        """
        with ThreadPoolExecutor(1) as sender:  # the next batch is made while the server works on this one
            sending: Future[None] | None = None
            for batch in batched(self._changed(records)):
                if sending:
                    sending.result()
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
        for group in grouped(records, MAX_FILTER_VALUES):
            changed = [record for record in group if not self._is_there(record)]
            self.unchanged += len(group) - len(changed)
            rewritten = {record["external_id"] for record in changed if self._is_rewritten(record)}
            answers = self.store.responses(sorted(rewritten)) if rewritten else {}
            for record in changed:
                yield self._with_outdated(record, answers.get(record["external_id"], ()))

    def _metadata(self, record: Record) -> Mapping[str, Any]:
        """The metadata that the server has for a record."""
        known = self.known.get(record["external_id"])
        return (known and known["metadata"]) or {}

    def _is_there(self, record: Record) -> bool:
        return bool(self._metadata(record).get(RECORD) == record["metadata"][RECORD])

    def _is_rewritten(self, record: Record) -> bool:
        return record["external_id"] in self.known and (
            self._metadata(record).get(CONTENT) != record["metadata"][CONTENT]
        )

    def _with_outdated(self, record: Record, answers: Iterable[Mapping[str, Any]]) -> Record:
        """Note which responses were given to an earlier content, so that they are never applied to this one."""
        outdated = dict(self._metadata(record).get(OUTDATED) or {})
        outdated |= {answer["id"]: answer["updated_at"] for answer in answers}
        return record | {"metadata": record["metadata"] | {OUTDATED: outdated}} if outdated else record

    def _send(self, batch: list[tuple[str, bytes]]) -> None:
        """Send a batch; when the server refuses it, send its halves, so that only the bad records stay out."""
        try:
            self.store.upsert(b'{"items":[' + b",".join(body for _, body in batch) + b"]}")
        except RejectedError as error:
            if len(batch) == 1:
                self.failed.append((batch[0][0], str(error)))
                return
            half = len(batch) // 2
            self._send(batch[:half])
            self._send(batch[half:])
        else:
            updated = sum(row_id in self.known for row_id, _ in batch)
            self.updated += updated
            self.pushed += len(batch) - updated


def grouped(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    """Cut a stream into lists of ``size``, the last one shorter."""
    stream = iter(records)
    while group := list(islice(stream, size)):
        yield group


def batched(records: Iterable[Record]) -> Iterator[list[tuple[str, bytes]]]:
    """Encode records and group them, within the server's number of records and a size it takes at once.

    Returns:
        Lists of (row id, JSON).
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
