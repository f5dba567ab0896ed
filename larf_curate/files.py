"""Where this package keeps its files, and files that are either complete or absent: written aside, then renamed."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from platformdirs import user_cache_path, user_data_path

from larf_curate.errors import InputError

logger = logging.getLogger(__name__)
APP = "larf-curate"
HOME = "LARF_CURATE_HOME"
"""Environment variable that puts cache and data into one folder."""
SAMPLE = 4096
SAMPLES = 256
"""Bytes of a block, and blocks of a file, that `sampled_digest` reads."""


def cache_home() -> Path:
    """Folder for what can be computed or downloaded again: ``$LARF_CURATE_HOME``, else the platform's cache folder.

    That is ``~/.cache/larf-curate`` on Linux, or below ``$XDG_CACHE_HOME``.
    """
    return _home() or user_cache_path(APP)


def data_folder(name: str) -> Path:
    """Folder for what cannot be made again, such as people's decisions; moved there if an earlier version cached it.

    Args:
        name: Its name in ``$LARF_CURATE_HOME``, else in the platform's data folder: ``~/.local/share/larf-curate`` on
            Linux, or below ``$XDG_DATA_HOME``.
    """
    if home := _home():
        return home / name
    folder = user_data_path(APP) / name
    for former in former_folders(name):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(former, folder)
            logger.warning("moved %s, which is no cache, to %s", former, folder)
        else:
            logger.warning("%s is in use; %s, of an earlier version, is not read: merge or remove it", folder, former)
    return folder


def former_folders(name: str) -> list[Path]:
    """Folders that exist where earlier versions kept data: in the cache."""
    caches = dict.fromkeys((user_cache_path(APP), Path.home() / ".cache" / APP))
    return [cache / name for cache in caches if (cache / name).is_dir()]


def _home() -> Path | None:
    """The folder for everything, if the user named one."""
    named = os.environ.get(HOME)
    return Path(named).expanduser().absolute() if named else None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it takes that name in one step, on error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")  # several processes may write the same file
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:  # noqa: ANN401  any JSON value
    """Write a JSON file in one step, keys in the order given."""
    with atomic_path(Path(path)) as aside:
        aside.write_text(json.dumps(value, ensure_ascii=True, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:  # noqa: ANN401  any JSON value
    """Read a JSON file.

    Raises:
        InputError: If it is not there or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is not there: was the folder written by larf-curate, and whole?") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): write it again with the command that made it") from error


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sampled_digest(paths: Sequence[Path]) -> str:
    """Hex SHA-256 of names, sizes and evenly spread pieces of large files: a training leaves none of them alike."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as stream:
            for place in range(0, size, max(size // SAMPLES, SAMPLE)):
                stream.seek(place)
                digest.update(stream.read(SAMPLE))
    return digest.hexdigest()
