"""Cache and data folders of this package, atomic writes, JSON files and file digests."""

import errno
import glob
import hashlib
import json
import logging
import math
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from platformdirs import user_cache_path, user_data_path

from larf_curate.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)
APP = "larf-curate"
HOME = "LARF_CURATE_HOME"
"""Environment variable with a folder that replaces both the cache and the data folder."""
PAGE_OPTIONS = {"use_content_defined_chunking": True, "write_page_index": True}
"""Options of Parquet: pages end where their content says so; the Hub then stores and sends only those that changed."""
MAX_JSON_BYTES = 2**28
"""Maximum size of a JSON file; a manifest of 100,000 shards has a tenth of it."""
MAX_DEPTH = 64
"""Maximum nesting of lists and objects in a JSON file."""
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.(?:tmp|new)", re.DOTALL)
"""Names of the temporary files that `atomic_path` creates."""
FORMER_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:[/\\]")
"""Beginning of a path that was a URL; names of drives have one letter."""
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)
"""Errors of file systems that give a file only one name."""
BLOCK_BYTES = 4096
"""Size of a block that `sampled_digest` reads."""
BLOCKS = 256
"""Number of blocks that `sampled_digest` reads from a large file."""


def cache_home() -> Path:
    """Folder for files that can be recomputed or downloaded again.

    It is ``$LARF_CURATE_HOME`` if set, else the platform's cache folder: ``~/.cache/larf-curate`` on Linux, or a folder
    in ``$XDG_CACHE_HOME``.
    """
    return _home() or user_cache_path(APP)


def data_folder(name: str) -> Path:
    """Folder for files that cannot be recomputed, such as reviewers' decisions.

    It is moved here if an earlier version stored it in the cache, where users may delete it.

    Args:
        name: Name of the folder in ``$LARF_CURATE_HOME`` if set, else in the platform's data folder:
            ``~/.local/share/larf-curate`` on Linux, or a folder in ``$XDG_DATA_HOME``.
    """
    if home := _home():
        return home / name
    folder = user_data_path(APP) / name
    for former in former_folders(name):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(former, folder)
            logger.warning("moved %s, which is not a cache, to %s", former, folder)
        else:
            logger.warning("%s is used; %s, of an earlier version, is not read: merge or remove it", folder, former)
    return folder


def former_folders(name: str) -> list[Path]:
    """Existing folders in which earlier versions stored data: in the cache."""
    # Earlier versions used ~/.cache on all platforms.
    caches = dict.fromkeys((user_cache_path(APP), Path.home() / ".cache" / APP))
    return [cache / name for cache in caches if (cache / name).is_dir()]


def _home() -> Path | None:
    """The folder in `HOME`, if the variable is set."""
    named = os.environ.get(HOME)
    return Path(named).expanduser().absolute() if named else None


@contextmanager
def atomic_path(path: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Write a file atomically: yield a temporary path beside it, which is renamed to ``path`` on success.

    Readers see the old file or the complete new one. On an error the temporary file is removed; a killed process leaves
    it behind as ``.<name>.<random>.tmp``, until the file is written the next time.

    Args:
        path: The file to write; its folder is created if needed.
        mode: Permissions of the file, less those of the umask; the temporary file has them from its first byte.

    Raises:
        OSError: If there is something else than a file of this name, such as a device.
    """
    prepare_to_write(path)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")  # several processes may write the same file
    try:
        with _locked(temporary, mode):
            yield temporary
            os.replace(temporary, path)  # atomic only within a file system: so the temporary file is in the same folder
    finally:
        temporary.unlink(missing_ok=True)


def prepare_to_write(path: Path) -> None:
    """Create the folder of a file if needed.

    Raises:
        OSError: If there is something else than a file of this name, such as a device.
    """
    if FORMER_URL.match(str(path)):
        raise OSError(f"{path} looks like a URL that became a path: give it as text to what can write to URLs")
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file: write to another name")
    path.parent.mkdir(parents=True, exist_ok=True)


def place_first(temporary: Path, path: Path) -> bool:
    """Give a complete file its name, unless another process, on this or another machine, has been faster.

    It needs no locks, which do not hold on all network file systems. Without hard links, both could have the name one
    after the other.

    Args:
        temporary: The complete file, in the same folder; it may have both names afterwards.
        path: Its name.

    Returns:
        Whether the file has the name; otherwise the file of this name is left as it is.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        return path.samefile(temporary)  # a request that a network file system has repeated
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


@contextmanager
def _locked(temporary: Path, mode: int) -> Iterator[None]:
    """Create a temporary file with a lock, which ends with this process: others do not take it for abandoned."""
    if not fcntl:
        yield
        return
    with _create_locked(temporary, mode):
        yield


def _create_locked(temporary: Path, mode: int) -> IO[bytes]:
    """Create and lock a file that has been locked for as long as it has its name; the lock ends when it is closed."""
    new = temporary.with_suffix(".new")
    while True:
        file = open(new, "wb", opener=lambda name, flags: os.open(name, flags, mode))
        try:
            with suppress(OSError):  # a file system without locks, where no file is taken for abandoned either
                fcntl.flock(file, fcntl.LOCK_EX)
            os.replace(new, temporary)
            return file
        except FileNotFoundError:  # before it was locked, another process took it for abandoned
            file.close()
        except BaseException:
            file.close()
            raise


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary files of a path that killed processes have left, which nobody has locked."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.????????.*") if fcntl else ():
        if not is_temporary(temporary):
            continue
        with suppress(OSError):  # locked, or already removed
            descriptor = os.open(temporary, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                temporary.unlink()
            finally:
                os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether a file is, by its name, an incomplete one that `atomic_path` created."""
    return TEMPORARY.fullmatch(path.name) is not None


def remove_temporary_files(folder: Path, run: str = "*") -> None:
    """Remove the incomplete files that killed processes have left in a folder; no other process may be writing them.

    Args:
        folder: The folder.
        run: The eight hexadecimal digits at the end of their names, before the suffix; default: any.
    """
    for path in filter(is_temporary, folder.glob(f".*.{run}.*")):
        path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401  any JSON value
    """Write a JSON file atomically, in ASCII and with keys in the order given.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON does not allow.
    """
    with atomic_path(Path(path)) as temporary:
        temporary.write_text(_to_json(value), encoding="utf-8")


def write_first_json(path: str | Path, value: Any) -> None:  # noqa: ANN401  any JSON value
    """Write a JSON file as `write_json` does, unless another process has written it; see `place_first`.

    Raises:
        ValueError: If a number is NaN or infinite, which JSON does not allow.
    """
    path = Path(path)
    prepare_to_write(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(_to_json(value), encoding="utf-8")
        place_first(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _to_json(value: Any) -> str:  # noqa: ANN401  any JSON value
    return json.dumps(value, ensure_ascii=True, indent=2, allow_nan=False) + "\n"


def read_json(path: str | Path) -> Any:  # noqa: ANN401  any JSON value
    """Read a JSON file.

    Raises:
        InputError: If the file does not exist or cannot be read, is not valid JSON, is nested too deeply, or has a
            number that is NaN or infinite.
    """
    try:
        check_readable(path, MAX_JSON_BYTES)
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is not there: give a folder that a larf-curate command wrote completely") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): write it again with the command that created it") from error
    return parse_json(text, path)


def check_readable(path: str | Path, most: int | None = None) -> None:
    """Check that reading a file neither waits for another process nor takes all memory.

    Args:
        path: The file.
        most: Its largest size in bytes; default: any.

    Raises:
        OSError: If it does not exist, is no regular file or is larger.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError("it is no regular file")
    if most is not None and status.st_size > most:
        raise OSError(f"it has {status.st_size:,} bytes, wanted at most {most:,}")


def parse_json(text: str, path: str | Path) -> Any:  # noqa: ANN401  any JSON value
    """Parse JSON strictly.

    Args:
        text: The text.
        path: Where it was read, for messages.

    Raises:
        InputError: If it is not valid JSON, is nested over `MAX_DEPTH` deep, or has a number that is NaN or infinite.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        _check_depth(value)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(
            f"{path} is not valid JSON ({reason}): write it again with the command that created it"
        ) from error
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is out of range")
    return value


def _check_depth(value: object) -> None:
    """Raise a RecursionError if lists and objects are nested over `MAX_DEPTH` deep."""
    level, depth = [value], 0
    while level := [part for item in level if isinstance(item, dict | list) for part in _parts(item)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise RecursionError


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes; the file need not fit into memory.

    Raises:
        OSError: If it cannot be read, or is no regular file.
    """
    check_readable(path)
    # SHA-256 is the fastest of hashlib's secure digests where the processor has instructions for it.
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sampled_digest(paths: Sequence[Path]) -> str:
    """Hex SHA-256 of file names, sizes and evenly spaced blocks, fast even for model weights of many gigabytes.

    Blocks suffice to tell checkpoints apart: training changes practically every weight.

    Args:
        paths: The files; their order counts.
    """
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as stream:
            for offset in range(0, size, max(size // BLOCKS, BLOCK_BYTES)):
                stream.seek(offset)
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()
