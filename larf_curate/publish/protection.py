"""Folders that are never published to: those of the inputs, and those with other results of larf-curate."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from larf_curate.errors import InputError, PublishError
from larf_curate.files import read_json
from larf_curate.manifests import KINDS, PLAN
from larf_curate.publish.bundle import PROVENANCE
from larf_curate.publish.kept_rows import KeptRows

RECORDS = {kind.file: {"kind", kind.before[0] if kind.before else "source"} for kind in KINDS} | {
    PLAN: {"source", "scorer"},
    "larf_profile.json": set[str](),
}
"""Names of the records of result folders and profiles, with fields by which they differ from files of others."""
_REMEDY = "publish to a folder of its own"


def check_target(target: Path, rows: Path, kept_rows: KeptRows) -> None:
    """Check that publishing to a folder can delete none of the inputs, also if other data in it are replaced.

    Args:
        target: The folder; it need not exist.
        rows: Folder of the kept rows.
        kept_rows: Its content; it names the source, the model and the references.

    Raises:
        PublishError: If the folder is, contains or is within an input or a folder of other results.
    """
    folder = target.resolve()
    for path in (rows, *_named_inputs(rows, kept_rows)):
        if path.resolve() == folder and path != rows and (path / PROVENANCE).is_file():
            continue  # an earlier publication is curated again: which of its files go, its provenance says
        if _overlaps(folder, path.resolve()):
            raise PublishError(f"{target} is, contains or is within the input {path}: {_REMEDY}")
    if record := next(_records(target, folder), None):
        raise PublishError(f"{target} is or contains a folder of results ({record}) or is within one: {_REMEDY}")


def _named_inputs(rows: Path, kept_rows: KeptRows) -> Iterator[Path]:
    """Existing local files and folders with the names of the source, the model and the references of the rows."""
    source, profile = _dict(kept_rows.scored.get("source")), _dict(kept_rows.scored.get("profile"))
    joined = [source.get("dataset"), *(_dict(profile.get(name)).get("source") for name in ("references", "neutral"))]
    names = [name for text in joined if isinstance(text, str) for name in text.split(" + ")]
    names += [name for name in (profile.get("model"), profile.get("adapter")) if isinstance(name, str)]
    for name in dict.fromkeys(filter(None, names)):
        # Records have the last part of a path only: it is searched where commands usually are run.
        for folder in dict.fromkeys((Path(), rows.parent)):
            if _exists(folder / name):
                yield folder / name


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is no path, such as one that is too long
        return False


def _overlaps(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _records(target: Path, folder: Path) -> Iterator[Path]:
    """Records of results in a folder, at any depth, and in those that it is within."""
    for parent in folder.parents:
        yield from filter(_is_record, (parent / name for name in RECORDS))
    yield from filter(_is_record, sorted(target.rglob("*.json")))


def _is_record(path: Path) -> bool:
    """Whether a file is a record, as far as can be told: one that is damaged is taken for one."""
    if path.name not in RECORDS or not path.is_file():
        return False
    try:
        value = read_json(path)
    except InputError:
        return True
    return isinstance(value, dict) and RECORDS[path.name] <= value.keys()
