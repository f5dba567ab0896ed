"""Media of published rows: files that rows only refer to are embedded, and no path of this machine is published."""

import logging
import mimetypes
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, LargeList, List, Value
from datasets.table import embed_array_storage

from larf_curate.errors import InputError

logger = logging.getLogger(__name__)
ROWS_PER_GROUP = 100
"""Rows with media that are in memory together, and in one row group of a Parquet file, as on the Hub."""
MEDIA_KINDS = ("image/", "audio/", "video/", "model/", "chemical/", "font/")
MEDIA_SUFFIXES = {
    *(".pdf", ".webp", ".heic", ".avif", ".flac", ".opus", ".m4a", ".ogg", ".webm", ".mkv", ".nii", ".dcm"),
    *(".glb", ".gltf", ".obj", ".ply", ".stl", ".fasta", ".fa", ".fastq", ".pdb", ".cif", ".mmcif", ".tiff"),
}
"""Endings of media beside those that `mimetypes` knows."""
_PATH = r"^\s*(/|~|file:|[A-Za-z]:[\\/]).*[^/\\\s]\s*$"
_MAX_PATH = 4096


def has_media(feature: Any) -> bool:  # noqa: ANN401  a feature, or a dict of features
    """Whether a type has media, such as images or audio, at any depth."""
    if isinstance(feature, dict):
        return any(has_media(part) for part in feature.values())
    return has_media(feature.feature) if isinstance(feature, List | LargeList) else hasattr(feature, "embed_storage")


class MediaEmbedder:
    """Embeds media into tables, and counts the files of this machine that it reads.

    Args:
        features: Types of the columns.
    """

    def __init__(self, features: Features) -> None:
        self._types = {name: _embedding(type_, name, self) for name, type_ in features.items()}
        self.files: Counter[str] = Counter()

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with all media embedded; their paths become file names.

        Raises:
            InputError: If a file cannot be read or is no media file, or a text refers to a media file of this machine.
        """
        for name, type_ in self._types.items():
            if has_media(type_):
                column = embed_array_storage(table[name], type_)
                index = table.column_names.index(name)
                table = table.set_column(index, table.schema.field(name), column.cast(table.schema.field(name).type))
            else:
                _check_texts(name, table[name], type_)
        return table

    def report(self) -> None:
        """Report the files of this machine that are published."""
        if self.files:
            listed = ", ".join(f"{count:,} in column {name}" for name, count in self.files.items())
            logger.warning("files of this machine are published within the rows: %s", listed)


class _Embedding:
    """A media type that embeds the bytes of files, with an error that names the column."""

    def __init__(self, feature: Any, name: str, embedder: MediaEmbedder) -> None:  # noqa: ANN401  a media type
        self.feature, self.name, self.embedder = feature, name, embedder

    def embed_storage(self, storage: pa.StructArray, **options: Any) -> pa.StructArray:  # noqa: ANN401
        for cell in storage.to_pylist():
            if cell and cell["bytes"] is None and cell["path"] is not None:
                self._check(cell["path"])
        paths = storage.field("path").to_pylist()
        local = [path and local_path(path) for path in paths]
        storage = _storage(storage.field("bytes"), local, storage)
        try:
            embedded = self.feature.embed_storage(storage, **options)
        except Exception as error:  # whatever a file system or server raises: the message names the column
            raise InputError(f"cannot read the media of column {self.name!r} ({error}): {_REMEDY}") from error
        return _storage(embedded.field("bytes"), [path and public_file_name(path) for path in paths], embedded)

    def _check(self, path: str) -> None:
        """Check a file before it is read: data from elsewhere may refer to any file of this machine."""
        if urlsplit(path).scheme in ("http", "https", "hf"):
            return
        if not is_media_file(path):
            raise InputError(
                f"column {self.name!r} refers to {path}, which does not look like a media file by its name: {_REMEDY}"
            )
        self.embedder.files[self.name] += 1


def _storage(content: pa.Array, paths: list[str | None], like: pa.StructArray) -> pa.StructArray:
    """Media with this content and these paths, null where others are."""
    return pa.StructArray.from_arrays([content, pa.array(paths, pa.string())], ["bytes", "path"], mask=like.is_null())


def local_path(path: str) -> str:
    """The path that a ``file:`` URL names; `datasets` would look for it in the current folder. Others are unchanged."""
    return unquote(urlsplit(path).path) if path.startswith("file:") and "::" not in path else path


_REMEDY = "restore the files, or remove the column"


def is_media_file(path: str) -> bool:
    """Whether the name of a file is one of an image, audio, video, document or another kind of media."""
    name = path.split("::")[0]
    kind = mimetypes.guess_type(name)[0] or ""
    return kind.startswith(MEDIA_KINDS) or bool(MEDIA_SUFFIXES & set(Path(name.lower()).suffixes))


def public_file_name(path: str) -> str:
    """The last part of a path or URL, without query, fragment and folders of any operating system."""
    if "://" in path:
        path = unquote(urlsplit(path.split("::")[0]).path) or path
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _embedding(feature: Any, name: str, embedder: MediaEmbedder) -> Any:  # noqa: ANN401  a feature, or a dict
    if isinstance(feature, dict):
        return {key: _embedding(part, name, embedder) for key, part in feature.items()}
    if isinstance(feature, List | LargeList):
        return replace(feature, feature=_embedding(feature.feature, name, embedder))
    return _Embedding(feature, name, embedder) if hasattr(feature, "embed_storage") else feature


def _check_texts(name: str, column: pa.ChunkedArray, feature: Any) -> None:  # noqa: ANN401  a feature, or a dict
    """Refuse texts that are paths of media files of this machine, and any path of media whose type was lost."""
    for texts, is_stored in (found for chunk in column.chunks for found in _texts(chunk, feature)):
        short = pc.less(pc.utf8_length(texts), _MAX_PATH)
        likely = texts.filter(pc.and_(short, pc.match_substring_regex(texts, _PATH)))
        for path in pc.unique(likely).to_pylist():
            if is_stored or (is_media_file(local_path(path.strip())) and _exists(path.strip())):
                raise InputError(
                    f"column {name!r} refers to files of this machine, such as {path}, which would not be published: "
                    "load the column as media, as with cast_column(name, Image()), or remove it"
                )


def _exists(path: str) -> bool:
    try:
        return Path(local_path(path)).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def _texts(array: pa.Array, feature: Any, *, is_stored: bool = False) -> Iterator[tuple[pa.Array, bool]]:  # noqa: ANN401
    """All texts of a column, at any depth, and whether they are paths in media as they are stored."""
    if isinstance(feature, dict):
        for name, part in feature.items():
            yield from _texts(array.field(name), part, is_stored=name == "path" and feature.keys() == {"bytes", "path"})
    elif isinstance(feature, List | LargeList):
        yield from _texts(array.flatten(), feature.feature)
    elif isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
        yield array.drop_null(), is_stored
