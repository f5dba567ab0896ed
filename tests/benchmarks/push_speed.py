"""Rows a second of `ReviewQueue.push` and of the bare Argilla client, with the same records on the same server.

    python tests/benchmarks/push_speed.py [ROWS]

The two take turns; each turn writes a dataset of its own. The client's processor time is printed too: on a busy machine
it says more than the clock.
"""

import logging
import sys
import tempfile
import time

from argilla.records import Record

from larf_curate.review import ReviewQueue
from larf_curate.review.record import RecordMaker, random_projection
from larf_curate.review.server import EmbeddedServer
from larf_curate.review.store import RecordStore
from tests.review_rows import questions, selection

TURNS = 4


def bare(queue, records):
    """Send records, made beforehand, with the client's own ``log``."""
    RecordStore.create(queue._connection, queue.name, min_submitted=1).vector_dimensions(128)
    dataset = queue._connection.client.datasets(queue.name, workspace="argilla")
    made = [
        Record(id=r["external_id"], fields=r["fields"], metadata=r["metadata"], vectors=r["vectors"]) for r in records
    ]
    start = time.perf_counter()
    dataset.records.log(made, batch_size=500)
    return time.perf_counter() - start


def ours(queue, chosen):
    """Push a selection: rows to records, then to the server."""
    start = time.perf_counter()
    result = queue.push(chosen)
    assert result.pushed == len(chosen.flagged)
    return time.perf_counter() - start


def main():
    logging.disable(logging.INFO)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    texts = [row | {"answer": row["answer"] + " Because that is how sums go." * 20} for row in questions(rows)]
    chosen = selection(texts, flagged=rows, width=576)
    make = RecordMaker(layers=[9, 14], signal="larf", split="train", projection=random_projection(576, 128))
    records = [make(row) for row in chosen.flagged]
    with EmbeddedServer(tempfile.mkdtemp(), port=0) as server:
        for turn in range(TURNS):
            for name, send, given in (("bare", bare, records), ("push", ours, chosen)):
                with ReviewQueue(f"{name}-{turn}", url=server.url, api_key=server.api_key) as queue:
                    busy = time.process_time()
                    seconds = send(queue, given)
                    busy = (time.process_time() - busy) / rows
                    print(f"{name} {rows / seconds:.0f} rows/s, client {1000 * busy:.2f} ms a row", flush=True)


if __name__ == "__main__":
    main()
