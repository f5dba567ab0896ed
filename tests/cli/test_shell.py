"""The command in other places: shell completion, and as an extension of the Hub's command line."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from larf_curate import __version__

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "config-file.md").read_text(encoding="utf-8")
MAIN = "import sys; from larf_curate.cli import main; main(prog_name=sys.argv.pop(1))"
HEAVY = "{'torch', 'datasets', 'transformers', 'numpy', 'argilla'} & set(sys.modules)"


def complete(words, shell="bash_complete", *, code=MAIN, name="larf-curate"):
    variable = f"_{name.upper().replace('-', '_')}_COMPLETE"
    given = {variable: shell, "COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, name]
    return subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_documented_lines_print_a_script_for_each_shell(shell):
    assert f"_LARF_CURATE_COMPLETE={shell}_source larf-curate" in PAGE
    script = complete("", f"{shell}_source")
    assert "_LARF_CURATE_COMPLETE" in script
    assert f"{shell}_complete" in script


def test_completion_knows_commands_options_and_choices_and_imports_no_heavy_library():
    code = f"import atexit, sys; atexit.register(lambda: print({HEAVY}))\n{MAIN}"
    assert complete("larf-curate sc", code=code).split() == ["plain,scan", "plain,score", "set()"]
    assert complete("larf-curate score --pro").split() == ["plain,--profile"]
    assert complete("larf-curate run --until re").split() == ["plain,report", "plain,review"]
    assert complete("hf-larf sel", name="hf-larf").split() == ["plain,select"]


def test_bash_completes_after_the_documented_line(tmp_path):
    (line,) = re.findall(r"^(eval .*bash_source.*\))\"", PAGE, re.MULTILINE)
    program = tmp_path / "larf-curate"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m larf_curate "$@"\n')
    program.chmod(0o755)
    script = f'{line}"\ncomplete -p larf-curate'
    given = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=os.environ | given, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("-F _larf_curate_completion larf-curate")


def test_both_names_are_installed_as_the_same_command():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == dict.fromkeys(("larf-curate", "hf-larf"), "larf_curate.cli:main")


@pytest.mark.slow
def test_the_hub_command_line_runs_it_as_an_extension_after_the_documented_lines(tmp_path):
    (lines,) = re.findall(r"^## `hf larf`\n.*?```bash\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "hf-larf"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{MAIN}' hf-larf \"$@\"\n")
    program.chmod(0o755)
    path = os.pathsep.join((str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]))
    given = {"PATH": path, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1", "PYTHONPATH": str(ROOT)}
    environment = os.environ | given | {"HF_HUB_OFFLINE": "1"}

    def shell(command):
        return subprocess.run(["bash", "-euc", command], env=environment, capture_output=True, text=True, check=False)

    assert shell(lines).returncode == 0
    assert f"larf-curate, version {__version__}" in shell("hf larf --version").stdout
    assert shell("hf larf select --help").stdout.startswith("Usage: hf-larf select")
    refused = shell("hf larf run absent.yaml")
    assert (refused.returncode, "absent.yaml" in refused.stderr) == (2, True)
