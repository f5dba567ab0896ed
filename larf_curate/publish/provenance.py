"""``provenance.json``: how the published rows were chosen, step by step, and the SHA-256 of each data file."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NotRequired

from typing_extensions import TypedDict

from larf_curate.files import parse_json
from larf_curate.publish.content import Content, digest, git_blob_id, size
from larf_curate.publish.kept_rows import KeptRows
from larf_curate.publish.redaction import redact
from larf_curate.records import DIGEST, FOREIGN, STRICT, check_seal, parse_record, seal
from larf_curate.version import __version__

PACKAGES = ("datasets", "huggingface_hub", "numpy", "pyarrow", "torch", "transformers")


class FileRecord(TypedDict):
    """Size and SHA-256 of a published file, and git's blob id if it may be outside LFS; earlier versions have none."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    bytes: int
    sha256: str
    blob: NotRequired[str]


class Provenance(TypedDict):
    """The fields of ``provenance.json`` that are read back."""

    __pydantic_config__ = FOREIGN  # type: ignore[misc]

    kind: Literal["publication"]
    version: Literal[1]
    files: dict[str, FileRecord]
    digest: NotRequired[str]


def render_provenance(kept_rows: KeptRows, files: Mapping[str, Content]) -> bytes:
    """Render the record as ASCII JSON, with private values redacted.

    Args:
        kept_rows: The rows, with the record of how they were chosen.
        files: All other files but the card, by path.

    It holds no date, so that publishing the same decisions again gives the same bytes and needs no commit.
    """
    record = {
        "kind": "publication",
        "version": 1,
        "reviewed": kept_rows.is_reviewed,
        "reviewers": kept_rows.reviewers,
        "counts": kept_rows.counts,
        "files": {path: _file_record(content) for path, content in files.items()},
        "records": kept_rows.digests,
        "packages": package_versions(),
        "stage": redact(kept_rows.manifest),
    }
    return (json.dumps(seal(record), ensure_ascii=True, indent=2) + "\n").encode("ascii")


def is_provenance(content: bytes | None) -> bool:
    """Whether a ``provenance.json`` is of larf-curate, damaged or not, and not a file of that name by others."""
    try:
        value = parse_json((content or b"").decode(), "provenance.json")
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("kind") == "publication"


def _file_record(content: Content) -> dict[str, int | str]:
    """A `FileRecord`."""
    blob = {"blob": git_blob_id(content)} if isinstance(content, bytes) else {}  # Parquet files always are in LFS
    return {"bytes": size(content), "sha256": digest(content), **blob}


def published_files(provenance: bytes | None) -> Mapping[str, FileRecord]:
    """Records by path of the files of an earlier publication, all but card and provenance.

    Args:
        provenance: Content of ``provenance.json``, which anybody may have written or changed.

    Returns:
        The records; empty if it is not a record of a publication, or was changed: then all data are foreign.
    """
    path, remedy = "provenance.json", "its data are not taken for published ones"
    try:
        value = parse_json((provenance or b"").decode(), path)
        record = parse_record(value, Provenance, path=path, remedy=remedy)
        if DIGEST in value:
            check_seal(value, path=path, remedy=remedy)
    except ValueError:
        return {}
    return record["files"]


def package_versions() -> dict[str, str]:
    """Installed versions of this package and of the packages that its results depend on."""
    versions = {"larf-curate": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
