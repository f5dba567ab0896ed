"""Check a result folder of ``score``, ``select`` or ``review pull`` that is given as a dataset."""

import os
from pathlib import Path
from typing import Any

from larf_curate.data.replacement import UNFINISHED
from larf_curate.errors import InputError
from larf_curate.files import read_json
from larf_curate.manifests import DECISIONS, PLAN, SCORED, SELECTION, Kind, check_shards, read_manifest, read_plan

PARTS = ("kept", "flagged", "removed", "withheld")
"""Names of the subfolders of selections and decisions."""
KINDS: tuple[Kind[Any], ...] = (SELECTION, DECISIONS)
"""What has such subfolders."""


def check_results(folder: Path) -> None:
    """Check that the rows of a result folder are complete and unchanged; other folders are not looked at.

    Files that only have the name of a manifest, but not its content, do not make a folder one of results.

    Args:
        folder: A folder of data files.

    Raises:
        InputError: If the folder has kept rows and others, which must not be mixed again, or was written by a run that
            did not finish, or was changed.
    """
    others = [folder / name for name in ("flagged", *(kind.file for kind in KINDS))]
    if (folder / "kept").is_dir() and any(path.exists() for path in others):
        raise InputError(f"{folder} has rows that were kept and others that were not: give {folder / 'kept'}")
    if (folder / PLAN).exists() and not (folder / SCORED.file).exists():
        raise InputError(f"{folder} has an unfinished run of score: finish it with --resume first, or give its dataset")
    if _is_run(folder) or _is_manifest(folder, SCORED):
        shards = read_manifest(folder, SCORED)["shards"]
        check_shards(folder, shards, remedy=_remedy(folder, "score again with --resume"))
    path = folder if folder.name in PARTS else Path(os.path.abspath(folder))  # which has a name for "."
    if path.name in PARTS:
        _check_part(path.parent, path.name)


def _check_part(folder: Path, part: str) -> None:
    """Check a subfolder of a selection or of decisions."""
    for kind in KINDS:
        if (folder / kind.file).exists() and _is_of(read_json(folder / kind.file), kind):
            shards = [shard for shard in read_manifest(folder, kind)["shards"] if Path(shard["file"]).parts[0] == part]
            check_shards(folder, shards, remedy=_remedy(folder / part, kind.remedy), parts=(part,))
            return
    if (folder / UNFINISHED).exists():
        raise InputError(f"{folder} was not written completely: write it again with the command that was interrupted")


def _is_run(folder: Path) -> bool:
    """Whether a folder has the plan of a scoring run."""
    try:
        read_plan(folder)
    except InputError:
        return False
    return True


def _is_manifest(folder: Path, kind: Kind[Any]) -> bool:
    """Whether a folder has a manifest of a kind."""
    try:
        return _is_of(read_json(folder / kind.file), kind)
    except InputError:
        return False


def _is_of(value: object, kind: Kind[Any]) -> bool:
    """Whether the content of a file is a manifest of a kind, even if of another version."""
    return isinstance(value, dict) and value.get("kind") == kind.name


def _remedy(folder: Path, remedy: str) -> str:
    return f'{remedy}, or give its files as "{folder / "*.parquet"}" to use them as they are'
