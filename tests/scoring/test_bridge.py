"""Rows that `map` scored go on as those of ``larf-curate score``, with their profile."""

import json

import pytest
from click.testing import CliRunner
from datasets import Dataset, DatasetDict, load_from_disk

from larf_curate.cli import main
from larf_curate.data.sources import open_source
from larf_curate.errors import InputError, ProfileMismatchError
from larf_curate.manifests import SELECTION, read_manifest
from larf_curate.profile import SafetyProfile
from larf_curate.report import write_report
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.run import score_source
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.selection import Selection, select
from tests.fixtures.models import PROFILE, six_pairs

ROWS = [{"question": f"Question {i}?", "answer": f"Sure, {i * 7}."} for i in range(9)]
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def profile(tiny_llama):
    return SafetyProfile.build(tiny_llama, six_pairs(), layers=(1, 3), **PROFILE)


@pytest.fixture(scope="module")
def other_profile(tiny_llama):
    return SafetyProfile.build(tiny_llama, six_pairs(), layers=(2,), **PROFILE)


@pytest.fixture
def mapped(profile):
    return Dataset.from_list([*ROWS, {"question": "?", "answer": ""}]).map(LarfScorer(profile), batched=True)


def test_a_map_result_is_recorded_as_score_records_its_folder(profile, mapped, tmp_path):
    mapped.select_columns(["question", "answer"]).to_json(tmp_path / "rows.jsonl")
    source = open_source((str(tmp_path / "rows.jsonl"),))
    score_source(source, LarfScorer(profile), tmp_path / "scored")
    wanted = Scored.load(tmp_path / "scored").manifest
    Scored.of(mapped, profile, source="rows").save(tmp_path / "saved")
    found = Scored.load(tmp_path / "saved")
    for field in ("kind", "version", "profile", "signals", "rows", "status", "scores"):
        assert found.manifest[field] == wanted[field], field
    assert found.rows.to_list() == mapped.to_list()
    assert found.manifest["source"] == {"dataset": "rows", "columns": None}


def test_a_selection_in_memory_records_its_profile(profile, mapped, tmp_path):
    select(mapped, top_k=3, profile=profile).save(tmp_path)
    recorded = read_manifest(tmp_path, SELECTION)["scored"]
    assert recorded["profile"] == json.loads(json.dumps(profile.summary()))
    assert Selection.load(tmp_path).scored["rows"] == 10


def test_the_commands_take_a_saved_map_result(profile, other_profile, mapped, tmp_path):
    mapped.save_to_disk(tmp_path / "saved")
    profile.save_pretrained(tmp_path / "profile")
    other_profile.save_pretrained(tmp_path / "other")

    def run(*arguments):
        return CliRunner().invoke(main, ["select", str(tmp_path / "saved"), "--top-k", "3", *map(str, arguments)])

    result = run("-o", tmp_path / "none")
    assert result.exit_code == 2
    assert "does not record which profile scored its rows: name it with --profile" in result.stderr
    assert not (tmp_path / "none").exists()
    assert run("-o", tmp_path / "selection", "--profile", tmp_path / "profile").exit_code == 0
    found = Selection.load(tmp_path / "selection")
    assert found.scored["profile"]["digest"] == profile.digest
    wanted = select(mapped, top_k=3, profile=profile)
    assert [row["question"] for row in found.flagged] == [row["question"] for row in wanted.flagged]
    wrong = run("-o", tmp_path / "wrong", "--profile", tmp_path / "other")
    assert wrong.exit_code == 2
    assert "wanted scores at as many layers as the profile has, 1, got 2" in wrong.stderr
    assert load_from_disk(str(tmp_path / "saved")).to_list() == mapped.to_list()


def test_the_report_of_a_saved_map_result_names_its_profile(profile, mapped, tmp_path):
    mapped.save_to_disk(tmp_path / "saved")
    profile.save_pretrained(tmp_path / "profile")
    arguments = ["report", str(tmp_path / "saved"), "-o", str(tmp_path / "report.html")]
    refused = CliRunner().invoke(main, arguments)
    assert refused.exit_code == 2
    assert "name it with --profile" in refused.stderr
    assert CliRunner().invoke(main, [*arguments, "--profile", str(tmp_path / "profile")]).exit_code == 0
    assert profile.digest[:16] in (tmp_path / "report.html").read_text()


def test_the_report_of_rows_and_their_selection_in_memory_names_their_profile(profile, mapped, tmp_path):
    selection = select(mapped, top_k=3, profile=profile, source="my rows")
    write_report(mapped, tmp_path / "report.html", selection=selection, profile=profile)
    assert profile.digest[:16] in (tmp_path / "report.html").read_text()


def test_what_was_not_scored_or_belongs_to_a_run_is_refused(profile, other_profile, mapped, tmp_path):
    with pytest.raises(InputError, match="has no larf_score"):
        Scored.of(Dataset.from_list(ROWS), profile)
    with pytest.raises(InputError, match="give the profile that scored these rows"):
        Scored.of(mapped, other_profile)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(InputError, match="has a run of larf-curate score"):
        Scored.of(mapped, profile).save(tmp_path)
    scored = Scored.of(mapped, profile)
    with pytest.raises(ProfileMismatchError):
        select(scored.rows, max_false_flags=0.1, profile=other_profile, scored=scored.manifest)


def test_a_profile_prints_as_a_few_lines_without_a_text_of_its_references(profile):
    lines = repr(profile).splitlines()
    assert len(lines) <= 10
    assert "tiny" in lines[1] or profile.summary()["model"] in lines[1]
    texts = [value for row in six_pairs().unsafe for value in row.values() if isinstance(value, str)]
    assert texts
    assert not any(text in repr(profile) + repr(six_pairs()) for text in texts)


def test_ids_of_saved_rows_do_not_depend_on_where_the_command_is_run(profile, mapped, tmp_path, monkeypatch):
    mapped.save_to_disk(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    found = [Scored.open(name, profile).source_id for name in ("saved", tmp_path / "saved", "./saved/../saved")]
    assert found == ['{"columns": null, "dataset": "saved"}'] * 3


def test_a_folder_with_several_splits_says_which_there_are(profile, mapped, tmp_path):
    DatasetDict({"train": mapped, "test": mapped}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"several splits \(test, train\): give the folder of one"):
        Scored.open(tmp_path / "saved", profile)
    assert len(Scored.open(tmp_path / "saved" / "test", profile).rows) == len(mapped)
