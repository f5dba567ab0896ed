"""Locks between processes, released by the operating system when their holder exits or is killed."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from larf_curate.errors import ReviewServerError
from larf_curate.server.private_files import open_private

_POLL_INTERVAL = 0.05  # seconds


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Acquire a lock without waiting.

    Args:
        path: Lock file; created if it does not exist.
        shared: Acquire a shared lock, which several processes can hold at once.

    Returns:
        A file descriptor that holds the lock until it is closed; None if another process holds the lock.

    Raises:
        ReviewServerError: On a system without file locks (Windows), or if the file is a link.
    """
    try:
        import fcntl  # does not exist on Windows
    except ImportError as error:
        raise ReviewServerError(
            "the embedded Argilla server runs on Linux and macOS only: use WSL, or your own server with --url"
        ) from error
    handle = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def is_locked(path: Path) -> bool:
    """Whether a running process holds the lock."""
    if not path.exists():
        return False
    handle = try_lock(path, shared=True)  # shared: several processes may check at the same time
    if handle is not None:
        os.close(handle)
    return handle is None


@contextmanager
def locked(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the lock within a ``with`` block.

    Args:
        path: Lock file; created if it does not exist.
        timeout: Seconds to wait for the lock.

    Raises:
        ReviewServerError: If another process still holds the lock after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while (handle := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise ReviewServerError(f"another process holds {path}: wait for it to finish or end it, then try again")
        time.sleep(_POLL_INTERVAL)
    try:
        yield
    finally:
        os.close(handle)
