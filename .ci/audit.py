"""Compare the pins of the embedded server with the advisories in ``advisories.json``, without a network.

It fails if a pin is affected and the entry does not say why that does no harm. ``--ignored`` prints the options with
which pip-audit leaves out the same advisories.
"""

import json
import re
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
ADVISORIES = HERE / "advisories.json"
LOCK = HERE.parent / "larf_curate" / "server" / "requirements.lock"
MAX_AGE = 90
"""Days after which the advisories count as old."""


def pins(lock: Path) -> dict[str, str]:
    """The version of each package in a lock file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def findings(advisories: list[dict[str, Any]], pinned: dict[str, str]) -> tuple[list[str], list[str]]:
    """Affected pins without a reason to ignore it, and entries that are no longer of use."""
    affected, idle = [], []
    for entry in advisories:
        version = pinned.get(canonicalize_name(entry["package"]))
        name = f"{entry['id']} of {entry['package']} {entry['affected']}"
        if version is None:
            idle.append(f"{name}: the package is not in the lock file, remove the entry")
        elif not SpecifierSet(entry["affected"]).contains(version, prereleases=True):
            if "ignored" in entry:
                idle.append(f"{name}: {version} is not affected, remove the reason to ignore it")
        elif not entry.get("ignored", "").strip():
            affected.append(f"{name}: {version} is affected. {entry['summary']} {entry['source']}")
    return affected, idle


def age_notice(checked: str, today: date) -> str | None:
    """What to say of the age of the advisories; None if they are recent."""
    days = (today - date.fromisoformat(checked)).days
    if days <= MAX_AGE:
        return None
    return f"WARNING: {ADVISORIES.name} is {days} days old, wanted at most {MAX_AGE}: search for later advisories"


def main(arguments: list[str]) -> int:
    """Print the findings; returns the exit status."""
    content = json.loads(ADVISORIES.read_text(encoding="utf-8"))
    if arguments == ["--ignored"]:
        ignored = (entry["id"] for entry in content["advisories"] if "ignored" in entry)
        sys.stdout.write(" ".join(f"--ignore-vuln {name}" for name in ignored))
        return 0
    pinned = pins(LOCK)
    affected, idle = findings(content["advisories"], pinned)
    notice = age_notice(content["checked"], datetime.now(UTC).date())
    for line in [*affected, *idle, *([notice] if notice else [])]:
        sys.stderr.write(f"{line}\n")
    count = len(content["advisories"])
    sys.stdout.write(f"{len(pinned)} pins of the server compared with {count} advisories of {content['checked']}\n")
    return 1 if affected or idle else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
