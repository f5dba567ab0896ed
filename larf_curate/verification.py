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


def remembered_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file, which is not read again until its inode, size or times change.

    Raises:
        OSError: If it cannot be read, or is no regular file.
    """
    before = _version(Path(path))
    note = _mark(before, "sha256")
    try:
        digest, check = note.read_text(encoding="ascii").split()
        if check == _mark(before, digest).name:
            return digest
        logger.debug("%s is damaged: the file is read again", note)
    except (OSError, ValueError):  # not there, or damaged
        pass
    digest = sha256(path)
    if _version(Path(path)) == before and time.time_ns() - before[-1] > SETTLED_NS:
        _remember(note, f"{digest} {_mark(before, digest).name}")
    return digest


def _mark(version: object, digest: str) -> Path:
    return _marks() / hashlib.sha256(f"{version}\n{digest}".encode()).hexdigest()


def _version(path: Path) -> tuple[int, ...]:
    """What differs between two versions of a file, or between two files."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _marks() -> Path:
    """Folder of one file for each version of a file that was read: empty if verified, else with its digest."""
    return cache_home() / "verified"


def _remember(mark: Path, text: str = "") -> None:
    with suppress(OSError):  # a full or read-only disk: the file is verified again the next time
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(text, encoding="ascii")
        names = os.listdir(mark.parent)
        if len(names) > MAX_REMEMBERED:
            known = sorted((mark.parent / name for name in names), key=lambda each: each.stat().st_mtime_ns)
            for old in known[: len(known) // 2]:
                old.unlink(missing_ok=True)
