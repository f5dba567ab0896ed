"""Publishing to a folder deletes no input and no other results, also with ``replace``."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

from larf_curate.errors import InputError, PublishError
from larf_curate.publish import publish
from tests.fixtures.decisions_folder import scored_record, selection_record, write_decisions, write_selection
from tests.fixtures.scored_folder import PROFILE, write_scored


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with all that a review has: source, model, profile, scored rows, selection and decisions."""
    root = tmp_path / "project"
    references = {**PROFILE["references"], "source": "unsafe.jsonl + safe.jsonl"}
    named = {"source": {"dataset": "rows"}, "profile": {**PROFILE, "model": "model", "references": references}}
    selection = selection_record(12, 5, scored=scored_record(12, **named))
    write_decisions(root / "decisions", selection=selection)
    write_selection(root / "selection")
    write_scored(root / "scored", Dataset.from_dict({"question": ["a"], "larf_score": [0.5], "larf_status": ["ok"]}))
    for name in ("rows/a.jsonl", "model/config.json", "refs/safe.jsonl", "safe.jsonl"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("{}")
    (root / "profile").mkdir()
    (root / "profile/larf_profile.json").write_text("{}")
    (root / "begun").mkdir()
    (root / "begun/plan.json").write_text('{"source": {}, "scorer": {}}')
    (root / "damaged").mkdir()
    (root / "damaged/selection.json").write_text("{")
    monkeypatch.chdir(root)
    return root


INPUTS = (".", "..", "decisions", "decisions/kept", "decisions/new", "rows", "rows/new", "model", "safe.jsonl/new")
OTHERS = ("selection", "selection/new", "scored", "scored/new", "profile", "profile/new", "begun", "damaged")


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("to", [*INPUTS, *OTHERS])
def test_inputs_and_other_results_are_not_published_to(project, to, dry_run):
    before = contents(project.parent)
    said = "the input" if to in INPUTS else "a folder of results"
    with pytest.raises(PublishError, match=f"{said}.*: publish to a folder of its own"):
        publish("decisions", project / to, replace=True, dry_run=dry_run)
    assert contents(project.parent) == before


def test_nor_through_links(project):
    (project / "link").symlink_to("selection")
    before = contents(project)
    with pytest.raises(PublishError, match="a folder of results"):
        publish("decisions", "./link", replace=True)
    assert contents(project) == before


def test_files_of_others_with_such_names_are_replaced_when_asked(project):
    (project / "curated").mkdir()
    for name in ("manifest.json", "plan.json", "decisions.json", "selection.json"):
        (project / "curated" / name).write_text(json.dumps({"kind": "web", "name": "site"}))
        shutil.copy(project / "curated" / name, project.parent / name)
    done = publish("decisions", "./curated", replace=True)
    assert set(done.replaced) == {"manifest.json", "plan.json", "decisions.json", "selection.json"}
    assert publish("decisions", "./curated").changed is False


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_a_folder_whose_name_is_not_utf8_is_refused_in_one_line(tmp_path):
    folder = write_selection(tmp_path / "rows")
    odd = folder.rename(tmp_path / os.fsdecode(b"s\xff"))
    with pytest.raises(InputError, match="is not UTF-8: rename it"):
        publish(odd, tmp_path / "curated")
