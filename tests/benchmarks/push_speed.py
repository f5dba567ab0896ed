"""Rows a second of `ReviewQueue.push` and of the bare Argilla client, with the same records on the same server.

    python -m tests.benchmarks.push_speed 10000

Each row has a conversation, evidence (score, layers, signals, nearest exemplar, tokens), metadata and a vector of 128
dimensions. The two take turns; each turn writes a dataset of its own. Ours makes the records out of the rows, reduces
the states and looks for near-identical rows within the time; the client's are made beforehand. Processor time of the
client is given too: on a busy machine it says more than the clock.
"""

import logging
import os
import sys
import tempfile
import time
from statistics import median

import numpy as np
from argilla.records import Record
from datasets import List, Value

from larf_curate.review import ReviewQueue
from larf_curate.review.argilla.dataset import RecordStore
from larf_curate.review.records.flagged_rows import FlaggedRows
from larf_curate.review.records.record import RecordMaker
from larf_curate.review.records.vectors import Reduction, vectors_of
from larf_curate.server import EmbeddedServer
from tests.fixtures.review_rows import fake_profile, questions, selection

TURNS = 3
WIDTH = 576
TOKENS = [{"text": f" word{i}", "weight": i / 40 - 0.3} for i in range(40)]


def rows_to_push(count):
    """A selection whose flagged rows have all the columns that scoring writes, and a profile of their width."""
    texts = [row | {"answer": row["answer"] + " Because that is how sums go." * 20} for row in questions(count)]
    chosen = selection(texts, flagged=count, width=WIDTH)
    features = chosen.flagged.features | {"larf_tokens": List({"text": Value("string"), "weight": Value("float64")})}
    flagged = chosen.flagged.map(lambda row: {"larf_tokens": TOKENS}, features=type(chosen.flagged.features)(features))
    states = np.random.default_rng(1).normal(size=(500, WIDTH)).astype(np.float32)
    return type(chosen)(**vars(chosen) | {"flagged": flagged}), fake_profile(states)


def bare(queue, records):
    """Send records, made beforehand, with the client's own ``log``."""
    RecordStore.create(queue._connection, queue.name, min_submitted=1).set_vector_space("bare", 128)
    dataset = queue._connection.client.datasets(queue.name, workspace="argilla")
    made = [
        Record(id=r["external_id"], fields=r["fields"], metadata=r["metadata"], vectors=r["vectors"]) for r in records
    ]
    busy, start = time.process_time(), time.perf_counter()
    dataset.records.log(made, batch_size=500)
    return time.perf_counter() - start, time.process_time() - busy


def ours(queue, given):
    """Push a selection: rows to records, then to the server."""
    chosen, profile = given
    busy, start = time.process_time(), time.perf_counter()
    result = queue.push(chosen, profile=profile)
    took = time.perf_counter() - start, time.process_time() - busy
    assert (result.pushed, result.failed) == (len(chosen.flagged), ())
    return took


def main():
    logging.disable(logging.INFO)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    chosen, profile = rows_to_push(count)
    reduction = Reduction.of_profile(profile)
    make = RecordMaker(
        layers=[9, 14],
        signal="larf",
        split="train",
        vectors=vectors_of(FlaggedRows.read(chosen.flagged), reduction),
    )
    records = [make(row) for row in chosen.flagged]
    rates = {"bare": [], "push": []}
    print(f"{count} rows, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| turn | way | rows/s | client, ms of processor a row |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as home, EmbeddedServer(home, port=0) as server:
        for turn in range(TURNS):
            for name, send, given in (("bare", bare, records), ("push", ours, (chosen, profile))):
                with ReviewQueue(f"{name}-{turn}", url=server.url, api_key=server.api_key) as queue:
                    seconds, busy = send(queue, given)
                rates[name].append(count / seconds)
                print(f"| {turn + 1} | {name} | {count / seconds:.0f} | {1000 * busy / count:.2f} |", flush=True)
    shares = [mine / theirs for mine, theirs in zip(rates["push"], rates["bare"], strict=True)]
    print(f"\nmedian: push {median(rates['push']):.0f}, bare {median(rates['bare']):.0f} rows/s;", end=" ")
    print(f"push against bare in each turn: {', '.join(f'{share:.1%}' for share in shares)}")


if __name__ == "__main__":
    main()
