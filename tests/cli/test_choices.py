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


def test_help_needs_no_heavy_library():
    code = f"import sys; {'; '.join(f'import larf_curate.cli.{name}' for name in COMMANDS)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "argilla", "sklearn", "faiss", "matplotlib"} & set(loaded)


def test_select_needs_no_model_library(tmp_path):
    rows = Dataset.from_dict({"question": ["a", "b"], "larf_score": [0.5, 1.0], "larf_status": ["ok", "ok"]})
    scored = write_scored(tmp_path / "scored", rows)
    code = "import sys, atexit; atexit.register(lambda: print(*sys.modules)); from larf_curate.cli import main; main()"
    command = [sys.executable, "-c", code, "select", str(scored), "--top-k", "1", "-o", str(tmp_path / "selection")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (tmp_path / "selection/selection.json").exists()
    assert not {"torch", "transformers", "argilla", "sklearn", "matplotlib"} & set(printed.split())


def test_separators_are_given_with_escapes():
    assert unescaped(r"\n\n### Input:\n") == "\n\n### Input:\n"
    assert unescaped(r"\t|\\n") == "\t|\\n"
    read = read_columns(None, None, r"user=q, assistant=a,input_separator=\n ")
    assert read == {"user": "q", "assistant": "a", "input_separator": "\n "}
