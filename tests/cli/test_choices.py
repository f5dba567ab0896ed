"""The words that options take are those of the registries that implement them."""

import re
import subprocess
import sys

import click
import pytest
import torch
from click.testing import CliRunner
from datasets import Dataset

from larf_curate.cli import COMMANDS, main
from larf_curate.cli.options import read_columns, unescaped
from larf_curate.conversation.refusals import KEYWORDS, RefusalDetector
from larf_curate.evaluation.judges import JUDGES
from larf_curate.layers.method import METHOD_NAMES
from larf_curate.layers.methods import METHODS
from larf_curate.models.dtypes import DTYPES
from larf_curate.review.learning.proposals import CHOOSERS
from larf_curate.review.strategies import STRATEGIES
from larf_curate.signals import SIGNALS
from tests.fixtures.scored_folder import write_scored


def choices(command, option):
    """What an option of a command takes, the command named by its words."""
    found = main
    for word in command.split():
        found = found.get_command(click.Context(found), word)
    [parameter] = [p for p in found.params if option in p.opts]
    return list(parameter.type.choices)


def test_methods_of_layers_are_those_implemented():
    assert choices("layers", "--method") == list(METHOD_NAMES) == list(METHODS)


def test_keywords_are_those_of_the_refusal_detector():
    assert choices("layers", "--keywords") == list(KEYWORDS)
    assert [RefusalDetector.named(name).keywords for name in KEYWORDS] == list(KEYWORDS.values())


@pytest.mark.parametrize("command", ["layers", "profile"])
def test_dtypes_are_those_of_torch(command):
    assert choices(command, "--dtype") == list(DTYPES)
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in DTYPES if name != "auto")


@pytest.mark.parametrize("command", ["evaluate", "verify"])
def test_judges_are_those_implemented(command):
    assert choices(command, "--judge") == list(JUDGES)


def test_strategies_of_review_next_are_those_implemented():
    assert choices("review next", "--by") == list(STRATEGIES) == list(CHOOSERS)


def test_help_names_the_experimental_signals():
    shown = CliRunner().invoke(main, ["profile", "--help"]).output
    named = re.search(r"Experimental:\s+(.+?)\.", " ".join(shown.split()))[1]
    assert named.split(", ") == [name for name, kind in SIGNALS.items() if kind.experimental]


def test_help_shows_no_range_without_bounds():
    shown = CliRunner().invoke(main, ["select", "--help"]).output
    assert "0<=x<=1" in shown
    assert "None" not in shown


def test_help_needs_no_heavy_library():
    code = f"import sys; {'; '.join(f'import larf_curate.cli.{name}' for name in COMMANDS)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "argilla", "sklearn", "faiss", "matplotlib"} & set(loaded)


def modules_loaded_by(*arguments):
    """The modules that a command has imported when it ends, and its exit code."""
    code = "import sys, atexit; atexit.register(lambda: print(*sys.modules)); from larf_curate.cli import main; main()"
    process = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    return set(process.stdout.split()), process.returncode


def test_select_needs_no_model_library(tmp_path):
    rows = Dataset.from_dict({"question": ["a", "b"], "larf_score": [0.5, 1.0], "larf_status": ["ok", "ok"]})
    scored = write_scored(tmp_path / "scored", rows)
    loaded, code = modules_loaded_by("select", scored, "--top-k", "1", "-o", tmp_path / "selection")
    assert code == 0
    assert (tmp_path / "selection/selection.json").exists()
    assert not {"torch", "transformers", "argilla", "sklearn", "matplotlib"} & loaded


@pytest.mark.parametrize("arguments", [["score", "none.jsonl", "--profile", "p", "-o", "s"],
                                       ["scan", "none.jsonl", "--model", "m"]])  # fmt: skip
def test_an_input_that_is_not_there_is_refused_before_model_libraries_are_imported(arguments):
    loaded, code = modules_loaded_by(*arguments)
    assert code == 2
    assert "datasets" in loaded
    assert not {"torch", "transformers", "sklearn"} & loaded


def test_review_status_needs_no_model_library(tmp_path):
    loaded, code = modules_loaded_by("review", "status", "--home", tmp_path / "none")
    assert code == 1
    assert "argilla" in loaded
    assert not {"torch", "transformers", "sklearn"} & loaded


def test_separators_are_given_with_escapes():
    assert unescaped(r"\n\n### Input:\n") == "\n\n### Input:\n"
    assert unescaped(r"\t|\\n") == "\t|\\n"
    read = read_columns(None, None, r"user=q, assistant=a,input_separator=\n ")
    assert read == {"user": "q", "assistant": "a", "input_separator": "\n "}
