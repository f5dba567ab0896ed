"""Threads of worker processes: together they use the cores there are, and none waits for those of its parent."""

import multiprocessing
import os

import multiprocess

THREADS = "OMP_NUM_THREADS"
"""The environment variable by which libraries are told how many threads to use."""


def share_cores(workers: int) -> None:
    """Give this worker process its part of the cores: for `worker_threads`, and for libraries loaded after this.

    Args:
        workers: How many processes compute at the same time.
    """
    part = max(1, _cores() // workers)
    os.environ[THREADS] = str(min(part, int(os.environ.get(THREADS) or part)))


def worker_threads() -> int | None:
    """How many threads a worker process may use; None outside of one.

    A forked one may use one only: it waits for ever for the thread pools of its parent. So may one of unknown many that
    were not told their share.
    """
    libraries = [library for library in (multiprocessing, multiprocess) if library.parent_process() is not None]
    if not libraries:
        return None
    forked = any(type(library.current_process()).__name__ == "ForkProcess" for library in libraries)
    return 1 if forked else int(os.environ.get(THREADS) or 1)


def _cores() -> int:
    """Number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
