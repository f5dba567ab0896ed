"""Files of the server's home: opened without following links, and readable by their owner only."""

import errno
import os
from pathlib import Path

from larf_curate.errors import ReviewServerError

_NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # does not exist on Windows


def open_private(path: Path, flags: int) -> int:
    """Open a file, which is created with mode 0600; returns its descriptor.

    Args:
        path: The file.
        flags: Flags of ``os.open``.

    Raises:
        ReviewServerError: If the file is a symbolic link, which could lead to a file of somebody else.
        OSError: If it cannot be opened.
    """
    try:
        return os.open(path, flags | _NO_FOLLOW, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ReviewServerError(f"{path} is a link: remove it, nothing that it leads to was changed") from None
        raise


def read_private(path: Path) -> str:
    """Read a text file; raises as `open_private` does."""
    with open(open_private(path, os.O_RDONLY), encoding="utf-8") as stream:
        return stream.read()


def write_private(path: Path, text: str) -> None:
    """Write a text file atomically, with mode 0600; raises as `open_private` does."""
    # Opened with the mode, not changed afterwards: other users can read no byte at any time.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # left by a killed process that had the same id
    with open(open_private(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
