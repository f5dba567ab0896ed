"""Worker processes that share the cores and the GPUs, and end with their parent, however it ends."""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from larf_curate.models.threads import share_cores


@contextmanager
def workers(count: int, kept: object) -> Iterator[ProcessPoolExecutor]:
    """Start processes, each with its share of the cores; all end with this one, and on any error.

    Args:
        count: How many.
        kept: What each of them is to have; see `rank_and_kept`.
    """
    context = multiprocessing.get_context("spawn")
    ranks = context.Queue()
    for rank in range(count):
        ranks.put(rank)
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start, initargs=(count, ranks, theirs, kept))
    try:
        with ours:  # once it is closed, here or by the kernel, every worker ends at once
            yield pool
            pool.shutdown()
    finally:
        pool.shutdown(cancel_futures=True)
        theirs.close()


_own: list[tuple[int, Any]] = []
"""What a worker process was started with."""


def rank_and_kept() -> tuple[int, Any]:
    """In a worker: its number from 0 on, and what it was given."""
    return _own[0]


def _start(count: int, ranks: Any, parent: Connection, kept: object) -> None:  # noqa: ANN401  a queue
    share_cores(count)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _own[:] = [(ranks.get(), kept)]


def _end_with(parent: Connection) -> None:
    """End this process when the other end of the pipe is closed."""
    wait([parent])
    os._exit(1)
