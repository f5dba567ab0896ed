"""``provenance.json``: how the published rows were chosen, step by step, and the SHA-256 of each data file."""

import json
from importlib.metadata import PackageNotFoundError, version

from larf_curate.files import sha256
from larf_curate.publish.kept_rows import KeptRows
from larf_curate.publish.redaction import redact
from larf_curate.publish.shards import Shards
from larf_curate.version import __version__

PACKAGES = ("datasets", "huggingface_hub", "numpy", "pyarrow", "torch", "transformers")


def render_provenance(kept_rows: KeptRows, shards: Shards) -> bytes:
    """Render the record as ASCII JSON, with private values redacted.

    It holds no date, so that publishing the same decisions again gives the same bytes and needs no commit.
    """
    record = {
        "kind": "publication",
        "version": 1,
        "reviewed": kept_rows.is_reviewed,
        "reviewers": kept_rows.reviewers,
        "counts": kept_rows.counts,
        "files": {
            path: {"bytes": local.stat().st_size, "sha256": sha256(local)} for path, local in shards.files.items()
        },
        "records": kept_rows.digests,
        "packages": package_versions(),
        "stage": redact(kept_rows.manifest),
    }
    return (json.dumps(record, ensure_ascii=True, indent=2) + "\n").encode("ascii")


def package_versions() -> dict[str, str]:
    """Installed versions of this package and of the packages that its results depend on."""
    versions = {"larf-curate": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
