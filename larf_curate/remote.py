"""Files of object stores and servers, by URL: read through copies in the cache, and written when they are complete.

A URL is listed once. Each object is downloaded into the cache under its size and version, so that an unchanged one is
not downloaded again and a changed one is. Credentials come from the environment, as the library of the store reads
them; those in a URL are used, and neither recorded nor shown.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from larf_curate.errors import InputError, LarfCurateError
from larf_curate.extras import require
from larf_curate.files import atomic_path, cache_home
from larf_curate.urls import public_url, without_credentials

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
"""Beginning of a URL."""
EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs")}
"""Module and extra of this package by protocol."""
WEB = ("http", "https")
WEB_URLS = tuple(f"{protocol}://" for protocol in WEB)
"""Protocols without listings: only single files are read."""
WRITABLE = (*EXTRAS, "memory")
"""Protocols of stores that show an object only when it is complete."""
VERSIONS = (
    *("ETag", "etag", "md5Hash", "generation", "VersionId", "blob_id"),
    *("LastModified", "Last-Modified", "mtime", "last_modified", "updated", "created"),
)
"""What stores tell of the version of an object."""
BATCH = 64
"""Number of objects that are downloaded at once."""
MAGIC = re.compile(r"[*?\[]")
"""Characters that make a path a glob."""
CREDENTIALS = re.compile(r"(?<=://)(?:[^/@]*:.*@|[^/@]*@)")
"""Credentials in the URL of an object: no bucket has a colon or an at sign in its name, and paths may have both."""


def is_url(name: str | os.PathLike[str]) -> bool:
    """Whether a name is a URL rather than a path or an id."""
    return isinstance(name, str) and URL.match(name) is not None


def public_name(name: str | os.PathLike[str]) -> str:
    """A name for records and messages: a URL without credentials, other names as they are."""
    text = os.fspath(name)
    if not is_url(name):
        return text
    return public_url(text) if text.lower().startswith(WEB_URLS) else CREDENTIALS.sub("", text)


def last_part(name: str | os.PathLike[str]) -> str:
    """The name of a file or folder without the folders that it is in."""
    return PurePosixPath(public_name(name)).name if is_url(name) else Path(name).name


def is_within(name: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Whether a path or URL is a folder or something in it."""
    if is_url(name) or is_url(folder):
        return f"{public_name(name).rstrip('/')}/".startswith(f"{public_name(folder).rstrip('/')}/")
    return Path(name).resolve().is_relative_to(Path(folder).resolve())


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file, folder or glob of a store.

    Args:
        url: The URL without credentials.
        protocol: Its protocol, such as ``s3``.
        files: The file system of `fsspec`.
        path: The path in it.
    """

    url: str
    protocol: str
    files: Any
    path: str

    @classmethod
    def open(cls, url: str) -> "Remote":
        """Open the store of a URL; nothing is requested from it yet.

        Raises:
            InputError: If there is no such protocol, it needs a library that is not part of this package, or the URL
                has ``.`` or ``..`` among its folders.
            MissingExtraError: If its library is not installed.
        """
        protocol, public = url.partition("://")[0].lower(), public_name(url)
        if "::" in url:
            raise InputError(f"wanted a URL of one store, got {public}: download and unpack it first")
        if protocol not in WEB and {".", ".."}.intersection(public.split("/")):  # folders of this machine, on the copy
            raise InputError(f"wanted a URL without '.' and '..', got {public}: give the place itself")
        if protocol in EXTRAS:
            require(EXTRAS[protocol][0], extra=EXTRAS[protocol][1])
        import fsspec  # type: ignore[import-untyped]

        try:
            files, path = fsspec.url_to_fs(url)
        except ImportError as error:
            raise InputError(
                f"{protocol}:// needs a library ({first_line(error)}): install it with pip, or copy {public} to "
                "this machine"
            ) from error
        except ValueError as error:
            known = ", ".join(f"{name}://" for name in ("s3", "gs", "hf", "https"))
            raise InputError(
                f"cannot use {public} ({first_line(error)}): give a URL such as {known}, or a path"
            ) from error
        return cls(url=public.rstrip("/"), protocol=protocol, files=files, path=path)

    def list(self, *, pattern: bool = False) -> dict[str, dict[str, Any]]:
        """List files with one request per page of the store.

        Args:
            pattern: Whether the path is a glob.

        Returns:
            What the store tells of each file, by its path below this one, or below the folder that the glob begins
            with; ``""`` for a single file. Empty if there is nothing.
        """
        self.files.invalidate_cache()  # other machines write too
        if self.protocol in WEB:
            return {"": self.files.info(self.path)}
        root = _folder_of_glob(self.path) if pattern else self.path
        found = self.files.glob(self.path, detail=True) if pattern else self.files.find(self.path, detail=True)
        return {
            name[len(root) :].strip("/"): info
            for name, info in sorted(found.items())
            if info["type"] == "file" and not name.endswith("/")
        }

    def remove(self, names: Sequence[str]) -> None:
        """Remove files, by their paths below this one."""
        paths = [f"{self.path}/{name}" for name in names]
        if plain := [path for path in paths if not MAGIC.search(path)]:
            self.files.rm(plain)  # many with one request, but what looks like a glob removes other files
        for path in paths:
            if MAGIC.search(path):
                self.files.rm_file(path)


def first_line(error: BaseException) -> str:
    """The first line of an error's message without credentials, or its type if it has none."""
    return without_credentials((str(error).strip().splitlines() or [type(error).__name__])[0])


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn the errors of a store that is read into an `InputError` of one line with a remedy."""
    public = public_name(url)
    try:
        yield
    except LarfCurateError:
        raise
    except FileNotFoundError as error:
        unreachable = ", or the server cannot be reached" if public.lower().startswith(WEB_URLS) else ""
        raise InputError(f"there is nothing at {public}{unreachable}: check the address") from error
    except PermissionError as error:
        raise InputError(f"may not read {public} ({first_line(error)}): check the credentials") from error
    except Exception as error:  # each store has errors of its own, many without a common class
        if isinstance(error, OSError) and error.errno and error.filename:  # of the disk with the cache
            raise
        raise InputError(
            f"cannot read {public} ({first_line(error)}): check the address, the connection and the credentials"
        ) from error


@contextmanager
def writing(url: str, *, verb: str = "write") -> Iterator[None]:
    """Turn the errors of a store that is written to, or read meanwhile, into an `OSError` of one line with a remedy."""
    public = public_name(url)
    try:
        yield
    except (LarfCurateError, FileExistsError):
        raise
    except FileNotFoundError as error:
        raise OSError(f"cannot {verb} {public} ({first_line(error)}): check the bucket") from error
    except PermissionError as error:
        raise OSError(
            f"may not {verb} {public} ({first_line(error)}): check the credentials and their rights"
        ) from error
    except Exception as error:  # as in `reading`
        if isinstance(error, OSError) and error.errno and error.filename:
            raise
        raise OSError(
            f"cannot {verb} {public} ({first_line(error)}): check the address, the connection and the space"
        ) from error


@contextmanager
def naming_urls() -> Iterator[None]:
    """Name URLs in errors of this package in place of the paths of their copies; also a decorator."""
    try:
        yield
    except LarfCurateError as error:
        if (text := with_urls(str(error))) == str(error):
            raise
        raise type(error)(text) from error


def local_copy(name: str | os.PathLike[str], *, beside: Sequence[str] = ()) -> Path:
    """Download what a URL names into the cache, unless it is there; other names are paths already.

    Args:
        name: A path, or the URL of a file, a folder or a glob.
        beside: Names of files in the folder above a folder that are needed too, if they are there.

    Returns:
        The path; for a glob, one of a glob that matches the same files.

    Raises:
        InputError: If there is nothing, it may not be read, or the store cannot be reached.
        MissingExtraError: If the library of the store is not installed.
    """
    if not is_url(name):
        return Path(name)
    url = os.fspath(name)
    if url.lower().startswith("file://"):
        return Path(url[len("file://") :])
    remote = Remote.open(url)
    with reading(url):
        pattern = remote.protocol not in WEB and MAGIC.search(remote.path) is not None
        found = remote.list(pattern=pattern)
        _check_names(found, remote.url)
        listed = {key: info for key, info in found.items() if not _is_hidden_folder(key)}
        if not listed:
            raise FileNotFoundError(url)
        root = _folder_of_glob(remote.url) if pattern else remote.url
        folder, _, last = root.rstrip("/").rpartition("/")
        objects = {str(PurePosixPath(last, key)): info for key, info in listed.items()}
        objects |= _beside(remote, beside)
        tree = _tree(remote, folder, objects)
    return tree / last / remote.path[len(_folder_of_glob(remote.path)) :].strip("/") if pattern else tree / last


def local_name(name: str, *, beside: Sequence[str] = ()) -> str:
    """The same as text; what is no URL is returned unchanged, as ids of the Hub must be."""
    return str(local_copy(name, beside=beside)) if is_url(name) else name


def with_urls(text: str) -> str:
    """A text in which URLs replace the paths of their copies in the cache."""
    copies = re.escape(str(_cache())) + r"/(?:trees|runs)/([0-9a-f]{32})"
    return re.sub(copies, lambda found: remembered_url(found[1]) or found[0], text)


def _folder_of_glob(path: str) -> str:
    """The folder that a glob begins with."""
    magic = MAGIC.search(path)
    return path[: path.rfind("/", 0, magic.start())] if magic else path


def _is_hidden_folder(key: str) -> bool:
    """Whether a file is in a hidden folder, such as the journal of a run, which nobody reads from a copy."""
    return any(part.startswith(".") for part in PurePosixPath(key).parts[:-1])


def _check_names(keys: Mapping[str, object], url: str) -> None:
    """Refuse names that would be files outside of a folder, or no names of files at all."""
    for key in keys:
        if ".." in key.split("/") or "\0" in key or "\\" in key:
            raise InputError(f"{url} has an object {key[:60]!r}, which no file can be called: rename it")


def _beside(remote: Remote, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Those of some files that are in the folder above."""
    folder, found = remote.path.rstrip("/").rpartition("/")[0], {}
    for name in names:
        try:
            found[name] = remote.files.info(f"{folder}/{name}")
        except FileNotFoundError:
            continue
    return found


def _cache() -> Path:
    return cache_home() / "remote"


def _tree(remote: Remote, folder: str, objects: Mapping[str, Mapping[str, Any]]) -> Path:
    """Folder with exactly the listed files, under a name that only this listing has."""
    blobs = {key: _blob(f"{folder}/{key}", info) for key, info in objects.items()}
    name = hashlib.sha256(json.dumps([folder, *sorted(blobs.items())]).encode()).hexdigest()[:32]
    tree = _cache() / "trees" / name
    if all(_has_size(tree / key, info["size"]) for key, info in objects.items()):
        return tree
    _download(remote, {blobs[key]: info for key, info in objects.items()})
    tree.parent.mkdir(parents=True, exist_ok=True)
    remember_url(name, folder)
    with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".") as temporary:
        for key in objects:
            path = Path(temporary, "tree", key)
            path.parent.mkdir(parents=True, exist_ok=True)
            _link(_stored(blobs[key]), path)
        shutil.rmtree(tree, ignore_errors=True)  # incomplete
        try:
            os.rename(Path(temporary, "tree"), tree)
        except OSError:  # another process has been faster
            if not tree.is_dir():
                raise
    return tree


def object_version(info: Mapping[str, Any]) -> str:
    """What a store tells of the version of an object; empty if nothing."""
    return " ".join(str(info[key]) for key in VERSIONS if info.get(key))


def _blob(url: str, info: Mapping[str, Any]) -> str:
    """Name of a version of an object in the cache; a new one each time if the store does not tell versions."""
    version = object_version(info) or uuid4().hex
    return hashlib.sha256(json.dumps([url, info["size"], version]).encode()).hexdigest()


def _has_size(path: Path, size: int | None) -> bool:
    """Whether there is a file of the size that a store tells, if it tells any."""
    try:
        return path.stat().st_size == size or size is None
    except OSError:
        return False


def _download(remote: Remote, blobs: Mapping[str, Mapping[str, Any]]) -> None:
    """Download the objects that are not in the cache, each atomically."""
    missing = [(_stored(name), info) for name, info in blobs.items() if not _stored(name).is_file()]
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        with ExitStack() as stack:
            paths = [stack.enter_context(atomic_path(path)) for path, _ in batch]
            remote.files.get([info["name"] for _, info in batch], [str(path) for path in paths])
            for path, (_, info) in zip(paths, batch, strict=True):
                if not _has_size(path, info["size"]):
                    raise InputError(f"{remote.url} changed while it was downloaded: run the command again")


def _stored(blob: str) -> Path:
    return _cache() / "blobs" / blob[:2] / blob


def _link(blob: Path, path: Path) -> None:
    try:
        os.link(blob, path)
    except OSError:  # a file system without hard links
        shutil.copyfile(blob, path)


def remember_url(copy: str, url: str) -> None:
    """Record of which URL a folder in the cache is a copy."""
    with atomic_path(_cache() / "urls" / copy) as temporary:
        temporary.write_text(url, encoding="utf-8")


def remembered_url(copy: str) -> str | None:
    """The URL that `remember_url` recorded."""
    try:
        return (_cache() / "urls" / copy).read_text(encoding="utf-8")
    except OSError:
        return None


@contextmanager
def uploaded(target: str | os.PathLike[str], *, last: str | None = None) -> Iterator[Path]:
    """Yield a path to write a file or folder to; if it is a URL, what was written there is uploaded on success.

    Args:
        target: A path, or the URL of a file or folder. Files of this name are replaced, others are left alone.
        last: Name of the file of a folder that is uploaded last, since the folder is complete when it is there.

    Raises:
        InputError: If the store is not one that results can be written to.
        OSError: If it cannot be written to.
    """
    if not is_url(target):
        yield Path(target)
        return
    remote = writable(os.fspath(target))
    with tempfile.TemporaryDirectory(prefix="larf-curate-") as temporary:
        path = Path(temporary, last_part(target))
        yield path
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()) or [""]
        upload(remote, path, [name for name in names if name != last])
        upload(remote, path, [name for name in names if name == last])


def writable(url: str) -> Remote:
    """Open a store to write results to, and check that it answers and has the bucket.

    Raises:
        InputError: If it is not one that shows files only when they are complete.
        OSError: If it cannot be reached.
    """
    remote = open_writable(url)
    with writing(url):
        remote.files.invalidate_cache()
        remote.files.find(remote.path, maxdepth=1)
    return remote


def open_writable(url: str) -> Remote:
    """Open a store to write results to; nothing is requested from it yet.

    Raises:
        InputError: If it is not one that shows files only when they are complete, or its URL has credentials or is a
            glob.
    """
    protocol = url.partition("://")[0].lower()
    if protocol not in WRITABLE:
        raise InputError(
            f"results cannot be written to {public_name(url)}: give a path, or a URL of s3:// or gs://; publish writes "
            "to the Hub"
        )
    if public_name(url) != url:
        raise InputError(f"wanted {public_name(url)} without credentials: give them in the environment")
    if MAGIC.search(url):
        raise InputError(f"results cannot be written to {url}, which is a glob: give a URL without *, ? and [")
    return Remote.open(url)


def upload(remote: Remote, folder: Path, names: Sequence[str]) -> None:
    """Upload files of a folder.

    Args:
        remote: Where to; for the name ``""``, this and ``folder`` are files.
        folder: The folder.
        names: Paths of the files in it.
    """
    if names:
        with writing(remote.url):
            ends = [f"/{name}" if name else "" for name in names]
            remote.files.put([f"{folder}{end}" for end in ends], [f"{remote.path}{end}" for end in ends])
