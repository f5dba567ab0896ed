"""Thread counts of worker processes: together they use the available cores, and none deadlocks after a fork."""

import multiprocessing
import os

import multiprocess

THREADS_VARIABLE = "OMP_NUM_THREADS"
"""Environment variable from which numerical libraries take their number of threads."""


def share_cores(workers: int) -> None:
    """Limit this worker process to its share of the cores.

    The limit applies to `worker_threads` and to libraries that are loaded afterwards; a lower limit that is already set
    is kept.

    Args:
        workers: Number of processes that compute at the same time.
    """
    share = max(1, _cores() // workers)
    os.environ[THREADS_VARIABLE] = str(min(share, _limit() or share))


def worker_threads() -> int | None:
    """Number of threads that a worker process may use; None in the main process.

    A forked worker may use a single thread, since it would wait forever for the thread pools of its parent. So may a
    worker without a limit in its environment: the number of its siblings is unknown.
    """
    # `datasets` starts its workers by `multiprocess`, all others by the standard library.
    libraries = [library for library in (multiprocessing, multiprocess) if library.parent_process() is not None]
    if not libraries:
        return None
    forked = any(type(library.current_process()).__name__ == "ForkProcess" for library in libraries)
    return 1 if forked else _limit() or 1


def _limit() -> int | None:
    """The limit in the environment: OpenMP also allows one number per nesting level, of which the first counts here."""
    first = os.environ.get(THREADS_VARIABLE, "").split(",")[0].strip()
    return int(first) if first.isdigit() else None


def _cores() -> int:
    """Number of cores that this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
