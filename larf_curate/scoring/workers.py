"""Worker processes that share the CPU cores and GPUs, and always end with their parent, even if it is killed."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from larf_curate.models.threads import share_cores


@contextmanager
def workers(count: int, payload: object) -> Iterator[ProcessPoolExecutor]:
    """Start a pool of processes that share the cores evenly; it is shut down at the end and on any error.

    Args:
        count: Number of processes.
        payload: Picklable object that is sent to each process once; see `rank_and_payload`.

    Yields:
        The pool.
    """
    # Not fork: it would copy locks that other threads hold, and CUDA does not work in a forked process.
    context = multiprocessing.get_context("spawn")
    ranks = context.Queue()
    for rank in range(count):
        ranks.put(rank)
    worker_end, parent_end = context.Pipe(duplex=False)
    arguments = (count, ranks, worker_end, payload)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_initialize, initargs=arguments)
    try:
        with parent_end:  # once it is closed, here or by the kernel if this process is killed, all workers exit
            yield pool
            pool.shutdown()
    finally:
        pool.shutdown(cancel_futures=True)
        worker_end.close()


_rank_and_payload: list[tuple[int, Any]] = []
"""In a worker process: the one pair of its rank and payload."""


def rank_and_payload() -> tuple[int, Any]:
    """Return, in a worker process, its rank (from 0) and the payload."""
    return _rank_and_payload[0]


def _initialize(count: int, ranks: Any, parent: Connection, payload: object) -> None:  # noqa: ANN401  a queue
    """Initialize a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all: the parent ends the others
    share_cores(count)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    _rank_and_payload[:] = [(ranks.get(), payload)]


def _exit_with(parent: Connection) -> None:
    """Exit this process as soon as the parent's end of the pipe is closed."""
    wait([parent])
    os._exit(1)
