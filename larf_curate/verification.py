"""Compare files with their recorded digests; each version of a file is read once, and the result is remembered."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from larf_curate.files import cache_home, sha256

logger = logging.getLogger(__name__)
SETTLED_NS = 1_000_000_000
"""Age of the last change, in nanoseconds, from which on a file's digest is remembered: a change within the same tick of
the file system's clock would not be noticed."""
MAX_REMEMBERED = 20_000
"""Maximum number of verified files that are remembered; the oldest half is forgotten beyond it."""

_skipped = ContextVar("_skipped", default=False)


@contextmanager
def without_verification() -> Iterator[None]:
    """Take all files for unchanged, for commands with ``--no-verify``."""
    token = _skipped.set(True)
    try:
        yield
    finally:
        _skipped.reset(token)


def is_unchanged(path: str | Path, digest: str, *, size: int | None = None) -> bool:
    """Whether a file has the recorded hex SHA-256; False if it cannot be read.

    A verified file is not read again, by any process of this user, until its inode, size or times change. Its change
    time counts too, which programs that restore the modification time cannot set.

    Args:
        path: The file.
        digest: The recorded digest.
        size: The recorded size in bytes, if known: a file of another size is not read.
    """
    if _skipped.get():
        return True
    try:
        before = _version(Path(path))
        if size is not None and Path(path).stat().st_size != size:
            return False
        mark = _mark(before, digest)
        if mark.exists():
            return True
        if sha256(path) != digest or _version(Path(path)) != before:
            return False
        if time.time_ns() - Path(path).stat().st_ctime_ns > SETTLED_NS:
            _remember(mark)
    except OSError as error:
        logger.debug("cannot verify %s: %s", path, error)
        return False
    return True


def is_remembered(version: str, digest: str) -> bool:
    """Whether a version of a file or object was verified before, or nothing is to be verified."""
    return _skipped.get() or _mark(version, digest).exists()


def remember(version: str, digest: str) -> None:
    """Remember that a version of a file or object has a digest."""
    _remember(_mark(version, digest))


def _mark(version: object, digest: str) -> Path:
    return _marks() / hashlib.sha256(f"{version}\n{digest}".encode()).hexdigest()


def _version(path: Path) -> tuple[int, ...]:
    """What differs between two versions of a file, or between two files."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _marks() -> Path:
    """Folder of empty files, one for each verified version of a file, named by a digest of both."""
    return cache_home() / "verified"


def _remember(mark: Path) -> None:
    with suppress(OSError):  # a full or read-only disk: the file is verified again the next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        names = os.listdir(mark.parent)
        if len(names) > MAX_REMEMBERED:
            known = sorted((mark.parent / name for name in names), key=lambda each: each.stat().st_mtime_ns)
            for old in known[: len(known) // 2]:
                old.unlink(missing_ok=True)
