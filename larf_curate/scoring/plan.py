"""Plan of a scoring run: its settings, written before its first shard, which a resumed run must have too."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from larf_curate.errors import InputError
from larf_curate.files import remove_temporary_files
from larf_curate.manifests import PLAN, SCORED, Plan, read_plan
from larf_curate.records import write_sealed

MOST_SHOWN = 40
"""Maximum number of characters of a setting in an error message."""


def start_run(folder: Path, plan: dict[str, Any], resume: bool) -> None:
    """Write the plan of a new run, or compare it with the plan of the run to resume.

    Args:
        folder: Folder of the run.
        plan: Settings of the run.
        resume: Whether to continue a run with the same settings.

    Raises:
        InputError: If the folder has other content, or the run in it is finished, is not to be resumed or was started
            with other settings.
    """
    plan = json.loads(json.dumps(plan))  # as it will be read back: tuples become lists
    if not (folder / PLAN).exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty: use another folder")
        write_sealed(folder / PLAN, plan)
    elif not any(folder.glob("*.parquet")):  # nothing has been scored yet, so other settings are fine
        write_sealed(folder / PLAN, plan)
    elif not resume and (folder / SCORED.file).exists():
        raise InputError(
            f"{folder} is finished: continue with larf-curate select, check it with --resume, or use another folder"
        )
    elif not resume:
        raise InputError(f"{folder} has an unfinished run: continue it with --resume, or use another folder")
    elif changed := _changed_settings(read_plan(folder), plan):
        raise InputError(f"{folder} was started with {', '.join(changed)}: use the same, or another folder")
    remove_temporary_files(folder)


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
