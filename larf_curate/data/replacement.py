"""Replace the results in a folder: exactly the files of an earlier run are removed, which records list."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict

from larf_curate.errors import InputError
from larf_curate.files import read_json
from larf_curate.manifests import KINDS, Kind, check_folder, visible_shards
from larf_curate.records import STRICT, read_sealed, write_sealed
from larf_curate.remote import Remote, is_url, reading, upload, writable, writing

UNFINISHED = ".unfinished.json"
"""Name of the file that lists the files of a run until its manifest is written."""
RECORDS = (UNFINISHED, *(kind.file for kind in KINDS))
"""Files that tell what a folder has."""


class UnfinishedRecord(TypedDict):
    """``.unfinished.json``: the files that a run removes or writes."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    kind: Literal["unfinished"]
    files: list[str]
    digest: str


@contextmanager
def replaced_results(folder: str | Path, kind: Kind[Any], files: Sequence[str]) -> Iterator[Path]:
    """Remove the results of an earlier run, and yield the folder to write new ones, the manifest last.

    Only files that the manifest of the earlier run lists are removed, or the record of one that was killed. At a URL,
    they are removed when the new ones are complete on this machine, from where these are uploaded.

    Args:
        folder: Result folder, or its URL; it is created if needed.
        kind: Kind of the results.
        files: Paths of the Parquet files that will be written, in the folder.

    Raises:
        InputError: If the folder has results of another kind, other Parquet files where results are written, or a link
            in place of a subfolder, or the URL is not one that results can be written to.
        OSError: If they cannot be written.
    """
    if is_url(folder):
        with _replaced_in_store(writable(str(folder)), kind, files) as local:
            yield local
        return
    folder = Path(folder)
    check_replaceable(folder, kind, [str(Path(name).parent) for name in files])
    record, earlier = folder / UNFINISHED, _earlier_files(folder, kind)
    write_sealed(record, {"kind": "unfinished", "files": sorted({*earlier, *files})})
    (folder / kind.file).unlink(missing_ok=True)  # a folder without it is incomplete, and not read
    for name in earlier:
        (folder / name).unlink(missing_ok=True)
    yield folder
    record.unlink()


@contextmanager
def _replaced_in_store(remote: Remote, kind: Kind[Any], files: Sequence[str]) -> Iterator[Path]:
    """Yield a folder of this machine that looks like one of a store; replace the results there on success."""
    with tempfile.TemporaryDirectory(prefix="larf-curate-") as temporary:
        local = Path(temporary, remote.url.rpartition("/")[2])
        earlier = _sketch(remote, local)
        try:
            with replaced_results(local, kind, files):
                record = (local / UNFINISHED).read_bytes()
                yield local
        except InputError as error:
            raise type(error)(str(error).replace(str(local), remote.url)) from error
        removed = [name for name in earlier if not (local / name).exists()]
        with writing(remote.url):
            remote.files.pipe_file(f"{remote.path}/{UNFINISHED}", record)
            remote.remove([name for name in earlier if name == kind.file])  # as in a folder of this machine
            remote.remove([name for name in removed if name not in (kind.file, UNFINISHED)])
        upload(remote, local, [name for name in files if (local / name).exists()])
        upload(remote, local, [kind.file])
        with writing(remote.url):
            remote.remove([UNFINISHED])


def _sketch(remote: Remote, local: Path) -> list[str]:
    """Write the records of a folder of a store into one of this machine, and empty files for its Parquet files.

    Returns:
        The names of these files.
    """
    with reading(remote.url):
        names = [name for name in remote.list() if _is_result(name) or name in RECORDS]
        for name in names:
            path = local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(remote.files.cat_file(f"{remote.path}/{name}") if name in RECORDS else b"")
    return names


def check_replaceable(folder: Path, kind: Kind[Any], parts: Sequence[str]) -> None:
    """Check that writing results removes none but those of an earlier run, and that they will be the only ones.

    Args:
        folder: Result folder; it need not exist.
        kind: Kind of the results.
        parts: Subfolders to which they are written; ``"."`` for the folder itself.

    Raises:
        InputError: If the folder has results of another kind, other Parquet files where results are written, or a link
            in place of a subfolder.
    """
    check_folder(folder, kind)
    earlier = _earlier_files(folder, kind)
    for part in sorted({folder / name for name in parts} | {(folder / name).parent for name in earlier}):
        if part != folder and part.is_symlink():  # to a folder of something else
            raise InputError(f"{part} is a link, wanted a folder: remove the link, or write to another folder")
        for path in visible_shards(part):
            if path.relative_to(folder).as_posix() not in earlier:
                raise InputError(
                    f"{path} is not of {kind.content} that larf-curate wrote: move it, or write to another folder"
                )


def _earlier_files(folder: Path, kind: Kind[Any]) -> list[str]:
    """Paths of the files of earlier runs. A damaged manifest lists its files as well as it can."""
    listed: list[object] = []
    with suppress(InputError):
        listed += read_sealed(folder / UNFINISHED, UnfinishedRecord, remedy=kind.remedy)["files"]
    with suppress(InputError, LookupError, TypeError):
        listed += [shard["file"] for shard in read_json(folder / kind.file)["shards"]]
    return [name for name in listed if isinstance(name, str) and _is_result(name)]


def _is_result(name: str) -> bool:
    """Whether a path is one of a Parquet file in a folder or one of its subfolders, whoever wrote it down."""
    path = Path(name)
    return path.suffix == ".parquet" and not path.is_absolute() and ".." not in path.parts and len(path.parts) <= 2
