"""The examples and notebooks, run as they are written on a tiny model, which has other layers than the small one."""

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import nbclient
import nbformat
import pytest
from datasets import load_dataset

from larf_curate.data import load_rows
from larf_curate.review import ReviewQueue
from larf_curate.scoring.selection import Selection

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOKS = EXAMPLES / "notebooks"
LAYERS = ("[12, 14, 16]", "[1, 2, 3]")
"""Layers of the small model, and some of the tiny one."""

SORTED = pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
"""Of `Dataset.sort` in datasets 5 on pyarrow 25 and later."""


@pytest.fixture
def here(tmp_path, monkeypatch, own_caches):
    """An empty folder in which examples run, with rows of a dataset."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    rows = load_rows("demo")
    few = [row for row in rows if row["is_harmful"]][:10] + [row for row in rows if not row["is_harmful"]][:30]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    return folder


def example(name, *arguments, monkeypatch):
    """Run an example in this process."""
    path = EXAMPLES / name
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    code = compile(path.read_text(encoding="utf-8").replace(*LAYERS), str(path), "exec")
    exec(code, {"__name__": "__main__", "__file__": str(path)})


def test_the_list_names_each_example_and_they_are_numbered():
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert [name[:2] for name in names] == [f"{number:02d}" for number in range(1, len(names) + 1)]
    listed = re.findall(r"\]\(([\w/]+\.(?:py|ipynb))\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert listed == [*names, *(f"notebooks/{path.name}" for path in sorted(NOTEBOOKS.glob("*.ipynb")))]
    for name in names:
        assert ast.get_docstring(ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))), name


def test_the_job_has_inline_dependencies_as_uv_reads_them():
    text = (EXAMPLES / "06_score_job.py").read_text(encoding="utf-8")
    # The regular expression of the specification of inline script metadata.
    (found,) = re.finditer(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)
    content = "".join(
        line[2:] if line.startswith("# ") else line[1:] for line in found["content"].splitlines(keepends=True)
    )
    assert found["type"] == "script"
    assert tomllib.loads(content) == {"requires-python": ">=3.11", "dependencies": ["larf-curate[cpu]"]}


@pytest.mark.slow
def test_quickstart(here, tiny_llama, monkeypatch, capsys):
    example("01_quickstart.py", tiny_llama, "rows.jsonl", monkeypatch=monkeypatch)
    *flagged, last = capsys.readouterr().out.splitlines()
    assert len(flagged) == 3
    assert re.fullmatch(r"36 kept, 4 flagged: \d of 10 harmful ones", last)


@pytest.mark.slow
@SORTED
def test_own_references(here, tiny_llama, monkeypatch, capsys):
    pairs = EXAMPLES / "data" / "sycophancy.jsonl"
    example("02_own_references.py", tiny_llama, pairs, "rows.jsonl", monkeypatch=monkeypatch)
    first, *rows = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"24 own pairs of \d{3}; layers \[[\d, ]+\]", first)
    assert [row.split()[1] for row in rows] == ["ok"] * 3


@pytest.mark.slow
@SORTED
def test_other_trait(here, tiny_llama, monkeypatch, capsys):
    example("03_other_trait.py", tiny_llama, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25
    assert re.fullmatch(r"\d+ of the 12 flattering answers are among the 12 highest scores", lines[-1])


@pytest.mark.slow
def test_folders_and_report(here, tiny_llama, monkeypatch, capsys):
    example("04_folders_and_report.py", tiny_llama, "rows.jsonl", "out", monkeypatch=monkeypatch)
    assert "{'rows': 40, 'kept': 38, 'flagged': 2, 'unscorable': 0}" in capsys.readouterr().out
    assert len(Selection.load("out/selection").flagged) == 2
    assert "<html" in Path("out/report.html").read_text()


def notebook(name):
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def run_notebook(name, model):
    """Run a notebook in a kernel of its own; returns its outputs as text."""
    cells = notebook(name)
    for cell in cells.cells:
        cell.source = cell.source.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(model)).replace(*LAYERS)
        cell.source = cell.source.replace('load_rows("demo")', 'load_rows("demo")[:40]')
    nbclient.NotebookClient(cells, timeout=200, kernel_name="python3").execute()
    return json.dumps([cell.get("outputs", []) for cell in cells.cells])


@pytest.mark.parametrize("name", [path.name for path in sorted(NOTEBOOKS.glob("*.ipynb"))])
def test_a_notebook_is_stored_without_outputs(name):
    cells = notebook(name)
    nbformat.validate(cells)
    for cell in cells.cells:
        assert cell.cell_type == "markdown" or (cell.outputs, cell.execution_count) == ([], None)


@pytest.mark.slow
def test_review_and_publish_as_an_example_and_as_notebooks(
    here, tiny_llama, argilla_server, monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("ARGILLA_API_URL", argilla_server.url)
    monkeypatch.setenv("ARGILLA_API_KEY", argilla_server.api_key)
    shown = run_notebook("01_score_and_look.ipynb", tiny_llama)
    assert "of the 4 flagged rows are harmful" in shown
    assert "image/png" in shown
    flagged = Selection.load("selection").flagged["larf_row_id"][:]
    account = argilla_server.add_user("examples")
    with ReviewQueue("larf-example") as queue:
        # In the example people decide before they press Enter.
        def enter(prompt):
            assert queue.url in prompt
            queue.submit({flagged[0]: "keep", flagged[1]: "remove"}, api_key=account.api_key)

        monkeypatch.setattr("builtins.input", enter)
        example("05_review_and_publish.py", "selection", "./curated", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "{'kept': 37, 'removed': 1, 'withheld': 2, 'unflagged': 36, 'pending': 2}" in said
    assert "37 rows published" in said
    assert len(load_dataset("parquet", data_files="curated/data/*.parquet", split="train")) == 37
    # In the notebook nobody decides: only rows that were not flagged are published, to the same folder.
    shown = run_notebook("02_review_and_publish.ipynb", tiny_llama)
    assert "0 of 4 rows decided" in shown
    assert len(load_dataset("parquet", data_files="curated/data/*.parquet", split="train")) == 36
