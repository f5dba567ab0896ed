"""``provenance.json``: how the published rows came to be, stage by stage, and what each file must hash to."""

import json
from importlib.metadata import PackageNotFoundError, version

from larf_curate.files import sha256
from larf_curate.publish.kept_rows import Source
from larf_curate.publish.redaction import without_private
from larf_curate.publish.shards import Shards
from larf_curate.version import __version__

PACKAGES = ("datasets", "huggingface_hub", "numpy", "pyarrow", "torch", "transformers")


def render_provenance(source: Source, shards: Shards) -> bytes:
    """The record as JSON in ASCII; the same decisions give the same bytes, so it holds no date."""
    record = {
        "kind": "publication",
        "version": 1,
        "reviewed": source.reviewed,
        "reviewers": source.reviewers,
        "counts": source.counts,
        "files": {
            path: {"bytes": local.stat().st_size, "sha256": sha256(local)} for path, local in shards.files.items()
        },
        "records": source.digests,
        "packages": packages(),
        "stage": without_private(source.record),
    }
    return (json.dumps(record, ensure_ascii=True, indent=2) + "\n").encode("ascii")


def packages() -> dict[str, str]:
    """Versions of this package and of those its results depend on, as installed here."""
    found = {"larf-curate": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
