"""What commands print: one bar of each step, what comes next, and neither with ``--json`` or ``--quiet``."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from datasets import Dataset

from larf_curate.cli import COMMANDS, main
from larf_curate.profile import SafetyProfile
from tests.fixtures.models import PROFILE, six_pairs
from tests.fixtures.training_rows import tiny_rows

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    SafetyProfile.build(tiny_llama, six_pairs(), layers=(1,), **PROFILE).save_pretrained(folder / "profile")
    rows = [{"question": f"Question {i}?", "answer": f"Sure, {i * 7}."} for i in range(9)]
    Dataset.from_list(rows).to_json(folder / "rows.jsonl")
    return folder


def run(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.stderr
    return result


def score(folder, *arguments):
    return run("score", folder / "rows.jsonl", "--profile", folder / "profile", "--device", "cpu", *arguments)


def test_a_step_has_one_bar_and_names_the_command_that_comes_next(folder, tmp_path):
    result = score(folder, "-o", tmp_path / "my scored")
    assert result.stderr.count("9/9") == 1
    command = result.stdout.splitlines()[-1]
    assert command == f"Next: larf-curate select '{tmp_path}/my scored' --top-ratio 0.05 -o selection"


def test_json_is_all_that_is_printed(folder, tmp_path):
    result = score(folder, "-o", tmp_path / "scored", "--json")
    assert json.loads(result.stdout)["rows"] == 9
    assert not result.stderr


@pytest.mark.parametrize("options", [["--quiet"], ["-q", "--json"], ["--json", "-q"]])
def test_quiet_prints_nothing_but_what_json_was_asked_for(folder, tmp_path, options):
    result = score(folder, "-o", tmp_path / "scored", *options)
    assert not result.stderr
    assert bool(result.stdout) == ("--json" in options)
    assert "9/9" in score(folder, "-o", tmp_path / "again").stderr, "quiet does not outlast its command"


def test_errors_and_warnings_are_shown_though_quiet(folder, tmp_path):
    result = CliRunner().invoke(main, ["score", "nothing.jsonl", "--profile", "none", "-o", str(tmp_path), "--quiet"])
    assert result.exit_code == 2
    assert "no files match nothing.jsonl" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["8", "0"])
def test_training_shows_one_bar_and_nothing_of_its_libraries(tiny_llama, tmp_path, rank):
    tiny_rows().to_json(tmp_path / "rows.jsonl")
    command = [sys.executable, "-m", "larf_curate", "train", tmp_path / "rows.jsonl"]
    command += [
        "--model",
        tiny_llama,
        "-o",
        tmp_path / "tuned",
        "--method",
        "sft",
        "--max-steps",
        "2",
        "--batch-size",
        "2",
        "--lora-rank",
        rank,
    ]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert lines[-1].startswith("Training: 100%")
    assert "2/2" in lines[-1]
    assert "loss" in lines[-1]
    assert all(line.startswith("Training: ") for line in lines), lines
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "2 steps" in card
    assert "More Information Needed" not in card
    assert str(tiny_llama) not in card


def test_the_list_of_commands_cuts_no_sentence():
    listed = run("--help").stdout.partition("Commands:")[2]
    assert "..." not in listed
    assert all(f"\n  {name} " in listed for name in COMMANDS)
