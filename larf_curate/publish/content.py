"""Contents of published files, and the digests by which destinations report them."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from larf_curate.files import sha256

SHA256_LENGTH = 64  # hex digits; git's blob ids have 40
Content: TypeAlias = Path | bytes


def size(content: Content) -> int:
    """Size of a file in bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def digest(content: Content) -> str:
    """Hex SHA-256 of a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    status = content.stat()
    return _file_digest(content, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    """Hex SHA-256 of one version of a file: provenance, Croissant and the comparison with the destination need it."""
    return sha256(path)


def git_blob_id(content: Content) -> str:
    """Git's blob id of a file (hex SHA-1), which the Hub reports for files outside LFS."""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def is_unchanged(reported: str | None, content: Content) -> bool:
    """Whether a file has the digest that the destination reports; None if the destination lacks the file."""
    if reported is None:
        return False
    return reported == (digest(content) if len(reported) == SHA256_LENGTH else git_blob_id(content))
