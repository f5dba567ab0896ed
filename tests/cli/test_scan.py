"""``scan``: what the single commands give, without building or scoring anything twice."""

import json
import shutil

import pytest
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.profile import SafetyProfile
from larf_curate.profile.built import built_profile
from larf_curate.scoring import run
from larf_curate.scoring.selection import Selection
from tests.fixtures.models import six_pairs

ROWS = [{"question": f"How {'very ' * (i % 7)}{i}?", "answer": f"Sure, answer {i}."} for i in range(20)]
pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def larf_curate(*arguments, code=0):
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def scan(data, model, out, *options, code=0):
    return larf_curate("scan", data, "--model", model, "-o", out, "--device", "cpu", "--json", *options, code=code)


@pytest.mark.slow
def test_a_scan_is_what_the_single_commands_give_and_repeats_nothing(data, tiny_llama, tmp_path, monkeypatch):
    out = tmp_path / "scan"
    printed = json.loads(scan(data, tiny_llama, out, "--top-ratio", "0.1").stdout)
    assert printed["counts"] == {"rows": 20, "kept": 18, "flagged": 2, "unscorable": 0}
    assert "<html" in (out / "report.html").read_text()
    larf_curate("score", data, "--profile", out / "profile", "-o", tmp_path / "scored", "--device", "cpu")
    larf_curate("select", tmp_path / "scored", "--top-ratio", "0.1", "-o", tmp_path / "selection")
    wanted, found = Selection.load(tmp_path / "selection"), Selection.load(out / "selection")
    assert found.reasons == wanted.reasons
    assert (out / "scored/rows.parquet").read_bytes() == (tmp_path / "scored/rows.parquet").read_bytes()
    monkeypatch.setattr(SafetyProfile, "build", lambda *_, **__: pytest.fail("built again"))
    monkeypatch.setattr(run.ShardScorer, "score", lambda *_, **__: pytest.fail("scored again"))
    again = json.loads(scan(data, tiny_llama, out, "--top-ratio", "0.2").stdout)
    assert again["counts"]["flagged"] == 4


def test_another_dataset_in_the_folder_is_refused_with_what_differs(data, tiny_llama, tmp_path, monkeypatch):
    profile = SafetyProfile.build(tiny_llama, six_pairs(), layers=(1, 3), dtype="float32", device="cpu")
    monkeypatch.setattr("larf_curate.profile.built.built_profile", lambda *_, **__: profile)
    scan(data, tiny_llama, tmp_path / "scan", "--limit", "5")
    refused = scan(data, tiny_llama, tmp_path / "scan", "--limit", "6", code=2)
    assert "was started with limit 5, now 6, rows 5, now 6: use the same, or another folder" in refused.stderr


def test_a_profile_is_built_once_for_a_model_and_references_and_again_if_a_file_changes(
    tiny_llama, tmp_path, monkeypatch
):
    built = []

    def build(model, references, **options):
        built.append(references.digest)
        return original(model, references, layers=(1,), dtype="float32", **options)

    original = SafetyProfile.build
    monkeypatch.setattr(SafetyProfile, "build", build)
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    first = built_profile(model, six_pairs(), device="cpu")
    assert built_profile(model, six_pairs(), device="cpu").digest == first.digest
    assert len(built) == 1
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"larf": "changed"}))
    built_profile(model, six_pairs(), device="cpu")
    assert len(built) == 2
