"""Locks between processes that the system frees when their holder dies, however it dies."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from larf_curate.errors import ReviewServerError

_PAUSE = 0.05


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Take the lock now.

    Args:
        path: The file that stands for the lock; it is created.
        shared: Only look: does not get in the way of others who look.

    Returns:
        A file descriptor that holds the lock until it is closed, or None when another process has it.

    Raises:
        ReviewServerError: On a system without file locks (Windows).
    """
    try:
        import fcntl
    except ImportError as error:
        raise ReviewServerError(
            "the embedded Argilla server runs on Linux and macOS: use WSL, or a server of your own with --url"
        ) from error
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock."""
    if not path.exists():
        return False
    handle = try_lock(path, shared=True)
    if handle is not None:
        os.close(handle)
    return handle is None


@contextmanager
def locked(path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the lock while the block runs.

    Raises:
        ReviewServerError: If another process holds it for longer than ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while (handle := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise ReviewServerError(f"another process holds {path}: wait for it or end it, then try again")
        time.sleep(_PAUSE)
    try:
        yield
    finally:
        os.close(handle)
