import json

import pytest
from click.testing import CliRunner

from larf_curate.cli.layers import layers
from larf_curate.errors import InputError
from larf_curate.layers import LayerReport
from tests.layers.test_find import PROMPTS, planted


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    model, tokenizer = planted()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS), encoding="utf-8")
    rows = [{"prompt": p, "unsafe": "sure , here is the first step", "safe": "sorry , no"} for p in PROMPTS]
    (folder / "references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def run(files, *options):
    common = [
        "--prompts",
        str(files / "prompts.json"),
        "--references",
        str(files / "references.jsonl"),
        "--device",
        "cpu",
    ]
    arguments = [
        str(files / "model"),
        *common,
        "--dtype",
        "float32",
        "--alphas",
        "0.4,2.0",
        "--keywords",
        "larf",
        *options,
    ]
    return CliRunner().invoke(layers, arguments)


def test_the_command_writes_report_plot_and_cells_and_prints_the_layers(files, tmp_path):
    result = run(files, "-o", str(tmp_path / "out"), "--method", "sweep")
    assert result.exit_code == 0, result.output
    assert "Recommended layers: 1" in result.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "layers.cells.jsonl",
        "layers.json",
        "layers.png",
    ]
    assert LayerReport.load(tmp_path / "out").layers == (1,)


def test_the_command_prints_one_json_object(files, tmp_path):
    result = run(files, "-o", str(tmp_path / "found.json"), "--json")
    value = json.loads(result.stdout)
    assert value["layers"] == [1]
    assert value["report"] == str(tmp_path / "found.json")
    assert (tmp_path / "found.png").exists()


def test_the_command_ends_with_1_where_no_block_stands_out(files, tmp_path, monkeypatch):
    monkeypatch.setattr("larf_curate.layers.find.MAX_LOSS_GROWTH", -1.0)
    result = run(files, "-o", str(tmp_path), "--method", "forward")
    assert result.exit_code == 1
    assert "none is recommended" in result.stderr


def test_a_place_that_cannot_be_written_is_refused_before_the_work(files, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.json").mkdir()
    assert isinstance(run(files, "-o", str(tmp_path / "file")).exception, FileExistsError)
    assert isinstance(run(files, "-o", str(tmp_path / "folder.json")).exception, InputError)


def test_what_another_method_found_is_not_overwritten(files, tmp_path):
    for _ in range(2):
        assert run(files, "-o", str(tmp_path / "out"), "--method", "forward").exit_code == 0
    refused = run(files, "-o", str(tmp_path / "out"), "--method", "gradient").exception
    assert "is a report of the method forward" in str(refused)
    assert LayerReport.load(tmp_path / "out").method == "forward"
    (tmp_path / "mine.json").write_text("[1]")
    assert "is not a layer report" in str(run(files, "-o", str(tmp_path / "mine.json")).exception)
    assert (tmp_path / "mine.json").read_text() == "[1]"


def test_scales_that_are_no_numbers_are_wrong_usage(files, tmp_path):
    result = CliRunner().invoke(layers, [str(files / "model"), "-o", str(tmp_path), "--alphas", "a,b"])
    assert result.exit_code == 2
    assert "numbers" in result.stderr
