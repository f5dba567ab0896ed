"""Plan of a scoring run: its settings, written before its first shard, which whatever continues it must have."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from larf_curate.errors import InputError
from larf_curate.files import sha256, write_first_json
from larf_curate.manifests import PLAN, SCORED, Plan, read_plan
from larf_curate.records import seal, write_sealed
from larf_curate.scoring.run_store import store_of

MOST_SHOWN = 40
"""Maximum number of characters of a setting in an error message."""


def start_run(folder: Path, plan: Mapping[str, Any], resume: bool) -> str:
    """Write the plan of a new run, or compare it with the plan of the run to resume.

    Args:
        folder: Folder of the run.
        plan: Settings of the run.
        resume: Whether to continue a run with the same settings.

    Returns:
        Hex SHA-256 of the plan's file.

    Raises:
        InputError: If the folder has other content, or the run in it is finished, is not to be resumed or was started
            with other settings.
    """
    plan = json.loads(json.dumps(plan))  # as it will be read back: tuples become lists
    if not _has_plan(folder) or not _has_shards(folder):
        # Nothing has been scored yet, so other settings are fine.
        write_sealed(folder / PLAN, plan)
        if store := store_of(folder):
            store.put(folder, PLAN)
    elif not resume and (folder / SCORED.file).exists():
        raise InputError(
            f"{folder} is finished: continue with larf-curate select, check it with --resume, or use another folder"
        )
    elif not resume:
        raise InputError(f"{folder} has an unfinished run: continue it with --resume, or use another folder")
    else:
        _check_same(folder, plan)
    return sha256(folder / PLAN)


def join_run(folder: Path, plan: Mapping[str, Any]) -> str:
    """Write the plan of a run that several processes share, or compare it with the one that the first of them wrote.

    Args:
        folder: Folder of the run.
        plan: Settings of the run.

    Returns:
        Hex SHA-256 of the plan's file.

    Raises:
        InputError: If the folder has other content, or the run in it was started with other settings.
    """
    plan = json.loads(json.dumps(plan))
    if not _has_plan(folder):
        _write_first(folder, plan)
    _check_same(folder, plan)
    return sha256(folder / PLAN)


def check_plan(folder: Path, digest: str) -> None:
    """Check that the plan of a run is still the one with which this process began.

    Args:
        folder: Folder of the run.
        digest: Hex SHA-256 of the plan's file, from `start_run` or `join_run`.

    Raises:
        InputError: If another process has replaced it.
    """
    store = store_of(folder)
    if (hashlib.sha256(store.read(PLAN)).hexdigest() if store else sha256(folder / PLAN)) != digest:
        raise InputError(f"{folder / PLAN} was changed while rows were scored: score them into another folder")


def _write_first(folder: Path, plan: Mapping[str, Any]) -> None:
    """Write the plan, unless another process has been faster, whose plan is kept."""
    store = store_of(folder)
    if store is None:
        write_first_json(folder / PLAN, seal(plan))
        return
    with TemporaryDirectory() as temporary:
        write_sealed(Path(temporary, PLAN), plan)
        store.put_first(Path(temporary, PLAN), PLAN)
    store.fetch(folder)


def _has_shards(folder: Path) -> bool:
    """Whether a folder has a shard already."""
    if store := store_of(folder):
        return any(name.endswith(".parquet") and "/" not in name for name in store.names())
    return any(folder.glob("*.parquet"))


def _names(folder: Path) -> list[str]:
    """Names of what is in a folder, or in the store of which it has copies, which are made anew."""
    if store := store_of(folder):
        return store.fetch(folder)
    return os.listdir(folder) if folder.exists() else []


def _has_plan(folder: Path) -> bool:
    """Whether a folder has a plan already.

    Raises:
        InputError: If it has only other content.
    """
    # One listing: another process may write the plan and the first shard between two looks at the folder.
    names = _names(folder)
    if PLAN not in names and any(not name.startswith(f".{PLAN}.") for name in names):
        raise InputError(f"{folder} is not empty: use another folder")
    return PLAN in names


def _check_same(folder: Path, plan: Mapping[str, Any]) -> None:
    """Check that a run has the settings of the plan in its folder."""
    if changed := _changed_settings(read_plan(folder), plan):
        raise InputError(f"{folder} was started with {', '.join(changed)}: use the same, or another folder")


def _changed_settings(old_plan: Plan, new_plan: Mapping[str, Any]) -> list[str]:
    """The settings that differ between two plans: name, old value and new value."""
    old, new = (
        {**plan["source"], **plan["scorer"], "rows": plan["rows"], "guard": plan.get("guard")}
        for plan in (old_plan, new_plan)
    )
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name} {_shown(old.get(name))}, now {_shown(new.get(name))}" for name in names]


def _shown(value: object) -> str:
    """The beginning of a setting, on one line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."
