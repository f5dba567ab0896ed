"""The audit of the server's packages by the advisories in the repository."""

import json
import runpy
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

CI = Path(__file__).parents[1] / ".ci"
AUDIT = runpy.run_path(str(CI / "audit.py"))
CONTENT = json.loads((CI / "advisories.json").read_text(encoding="utf-8"))
ENTRY = {
    "id": "CVE-1",
    "package": "Star_Lette",
    "affected": ">=0.39,<0.49.1",
    "summary": "Slow.",
    "source": "https://x",
}


def test_the_pins_of_today_pass_and_each_entry_has_what_it_needs():
    done = subprocess.run([sys.executable, CI / "audit.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"compared with {len(CONTENT['advisories'])} advisories of {CONTENT['checked']}" in done.stdout
    for entry in CONTENT["advisories"]:
        assert entry["id"].startswith("CVE-")
        assert entry["source"].startswith("https://")
        assert entry["summary"]
    ids = [entry["id"] for entry in CONTENT["advisories"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("version", "ignored", "affected", "idle"),
    [
        ("0.46.2", None, 1, 0),
        ("0.46.2", " ", 1, 0),
        ("0.46.2", "no files are served", 0, 0),
        ("0.49.1", None, 0, 0),
        ("0.49.0", None, 1, 0),
        ("0.49.1", "no files are served", 0, 1),
        (None, None, 0, 1),
    ],
)
def test_affected_pins_fail_without_a_reason_and_idle_entries_are_told(version, ignored, affected, idle):
    entry = ENTRY | ({"ignored": ignored} if ignored else {})
    found = AUDIT["findings"]([entry], {"star-lette": version} if version else {})
    assert tuple(map(len, found)) == (affected, idle)
    if affected:
        assert all(word in found[0][0] for word in ("CVE-1", version, "https://x"))


def test_the_packages_that_were_pinned_before_are_found_to_be_affected():
    before = {"starlette": "0.46.2", "python-jose": "3.3.0", "urllib3": "1.26.20", "ecdsa": "0.19.2"}
    found, _ = AUDIT["findings"](CONTENT["advisories"], before)
    assert {line.split()[0] for line in found} == {
        "CVE-2025-62727",
        "CVE-2025-54121",
        "CVE-2026-48710",
        "CVE-2026-54282",
        "CVE-2024-33663",
        "CVE-2025-50181",
        "CVE-2026-21441",
    }


def test_all_pins_are_read(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text('# a==1\nA_b==1.0 \\\n    --hash=sha256:00 \\\nc.d==2 ; sys_platform == "win32" \\\n    --hash=x\n')
    assert AUDIT["pins"](lock) == {"a-b": "1.0", "c-d": "2"}
    text = AUDIT["LOCK"].read_text(encoding="utf-8")
    assert len(AUDIT["pins"](AUDIT["LOCK"])) == sum("==" in line for line in text.splitlines() if line[0] not in "# ")


def test_old_advisories_are_told_loudly():
    assert AUDIT["age_notice"]("2026-01-01", date(2026, 4, 1)) is None
    assert "WARNING: advisories.json is 91 days old" in AUDIT["age_notice"]("2026-01-01", date(2026, 4, 2))


def test_pip_audit_leaves_out_what_is_ignored_here():
    done = subprocess.run([sys.executable, CI / "audit.py", "--ignored"], capture_output=True, text=True, check=True)
    ignored = [entry["id"] for entry in CONTENT["advisories"] if "ignored" in entry]
    assert done.stdout.split() == [word for name in ignored for word in ("--ignore-vuln", name)]
