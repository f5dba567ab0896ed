"""README and docs/: commands and options exist, Python compiles, the tutorial runs, and nothing is left out."""

import ast
import copy
import functools
import http.server
import json
import re
import shlex
import subprocess
import sys
import textwrap
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from docs.hooks.cli_reference import cli_reference, commands, examples
from larf_curate.cli import COMMANDS, main
from larf_curate.conversation.schemas import to_messages
from tests.test_package import EXPORTS

ROOT = Path(__file__).parents[1]
GUIDES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
PAGES = [*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "examples" / "results").glob("*.md"))]
"""All pages whose commands must be right; the changelog is about commands as they were."""
LEAVES = list(commands(main, "larf-curate"))
MODEL, LAYERS = "HuggingFaceTB/SmolLM2-135M-Instruct", "12, 14, 16"
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(rf"`((?:larf-curate |(?:{'|'.join(COMMANDS)})(?: \w+)? -)[^`]*)`")
CHECKED_TYPES = (click.Choice, click.IntRange, click.FloatRange, type(click.INT), type(click.FLOAT), type(click.BOOL))


def page_name(path):
    return str(path.relative_to(ROOT))


def fences(text, language):
    return [textwrap.dedent(code) for _, found, code in FENCE.findall(text) if found == language]


def shell_commands(text):
    """The words of each simple command in a text of a shell; variables count as 0."""
    words = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(re.sub(r"\$\{?\w+\}?", "0", line), posix=True, punctuation_chars=";|&<>()")
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if "larf-curate " in word:
                yield from shell_commands(word)
            if set(word) <= set(";|&<>()"):
                yield words
                words = []
            else:
                words.append(word)


def check(words, *, complete=True):
    """Check a command against the real one without running it.

    Files need not exist. If it is not ``complete``, it may lack what is required and name values by capitals.
    """
    context, command = None, main
    while isinstance(command, click.Group) and words:
        context = click.Context(command, parent=context, info_name=command.name)
        found = command.get_command(context, words[0])
        assert found or words[0].startswith("-"), f"there is no command {words[0]}"
        if not found:
            break
        command, words = found, words[1:]
    params = [copy.copy(param) for param in command.params]
    for param in params:
        param.callback = None
        if not complete or not isinstance(param.type, CHECKED_TYPES):
            param.type = param.type if getattr(param, "is_flag", False) else click.STRING
        param.required = param.required and complete
    stand_in = click.Command(command.name, params=params)
    if isinstance(command, click.Group) or "--help" in words:
        return
    try:
        stand_in.make_context(command.name, list(words), parent=context)
    except click.BadOptionUsage:
        if complete or not words[-1].startswith("-"):  # a text may name an option without a value
            raise


def commands_of(text):
    """Commands of this package in fences, indented blocks and inline code: the words, and whether they are complete."""
    plain = FENCE.sub("", text)
    indented = re.findall(r"^(?: {4}.*\n)+", plain, re.MULTILINE)
    for block in [*fences(text, "bash"), *indented]:
        for words in shell_commands(block):
            if words[:1] == ["larf-curate"]:
                left_out = [i for i, word in enumerate(words) if word in ("...", "…")]
                yield words[1 : left_out[0] if left_out else None], not left_out
    for code in INLINE.findall(plain):
        words = [word for word in shlex.split(code) if word != "…"]
        yield words[words[0] == "larf-curate" :], False


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_the_commands_of_every_page_are_commands_with_these_options(path):
    for words, complete in commands_of(path.read_text(encoding="utf-8")):
        try:
            check(words, complete=complete)
        except (click.ClickException, AssertionError) as error:
            pytest.fail(f"larf-curate {' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "wrong",
    ["nonsense", "score rows.jsonl -o scored/", "select scored/ -o s/ --top-ratio 2", "review pull -o d/ --top 3"]
    + ["review nonsense", "report a/ b/ -o report.html", "train a/ --model m -o t/ --method sgd"],
)
def test_commands_that_do_not_exist_so_are_noticed(wrong):
    with pytest.raises((click.ClickException, AssertionError)):
        check(wrong.split())


@pytest.mark.parametrize("name", [name for name, _ in LEAVES])
def test_the_help_of_every_command_has_an_example_of_it_that_parses(name):
    command = dict(LEAVES)[name]
    lines = examples(command)
    assert lines
    assert lines[0].split(" ", 3)[: len(name.split())] == name.split()
    for line in lines:
        check(shlex.split(line)[1:])


@pytest.mark.parametrize("path", GUIDES, ids=page_name)
def test_the_python_of_every_guide_compiles_and_imports_what_there_is(path):
    for code in fences(path.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(code, page_name(path))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("larf_curate"):
                for name in node.names:
                    assert hasattr(import_module(node.module), name.name), f"{node.module}.{name.name}"


@pytest.mark.parametrize("path", GUIDES, ids=page_name)
def test_the_json_of_every_guide_is_a_conversation_or_a_pair(path):
    for code in fences(path.read_text(encoding="utf-8"), "json"):
        row = json.loads(code)
        assert {"prompt", "unsafe", "safe"} <= row.keys() or len(to_messages(row)) > 1


def test_the_reference_of_the_command_line_has_every_command_and_option():
    sections = cli_reference(main, "larf-curate").split("\n## ")[1:]
    assert [section.split("\n", 1)[0] for section in sections] == [name for name, _ in LEAVES]
    for section, (_, command) in zip(sections, LEAVES, strict=True):
        for param in command.params:
            if isinstance(param, click.Option):
                assert re.search(rf"^`.*{re.escape(param.opts[-1])}\b.*`\n: ", section, re.MULTILINE), param.name


def test_the_reference_of_python_has_every_public_name():
    pages = "".join(path.read_text() for path in sorted((ROOT / "docs" / "reference").glob("*.md")))
    documented = set(re.findall(r"^::: (\S+)$", pages, re.MULTILINE))
    for package in ("larf_curate", "larf_curate.diagnosis", "larf_curate.publish", "larf_curate.report"):
        assert {f"{package}.{name}" for name in EXPORTS[package]} <= documented
    for package in ("larf_curate.review", "larf_curate.training"):
        assert {f"{package}.{name}" for name in EXPORTS[package]} <= documented


def on_a_tiny_model(text, folder):
    """A text with the folder of a tiny model and its layers instead of the model it names."""
    assert MODEL in text
    few = text.replace(LAYERS, "1, 2, 3").replace(LAYERS.replace(" ", ""), "1,2,3")
    return few.replace(MODEL, str(folder))


@pytest.mark.slow
def test_the_example_of_the_readme_runs_as_it_is(tiny_llama, own_caches, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = fences((ROOT / "README.md").read_text(encoding="utf-8"), "python")
    exec(compile(on_a_tiny_model(code, tiny_llama), "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    (shown,) = (text for text in fences((ROOT / "README.md").read_text(encoding="utf-8"), "text") if "kept," in text)
    assert [len(lines), lines[-1].split(":")[0]] == [4, shown.splitlines()[-1].split(":")[0]]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_but_for_the_server(tiny_llama, own_caches, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = on_a_tiny_model((ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), tiny_llama)
    ran = []
    for _, language, code in FENCE.findall(page.replace("publish decisions/", "publish selection/")):
        if language == "python":
            exec(compile(code, "tutorial.md", "exec"), {})
        for words in shell_commands(code) if language == "bash" else ():
            if words[:1] == ["larf-curate"] and words[1] != "review":
                result = CliRunner().invoke(main, words[1:], catch_exceptions=False)
                assert result.exit_code == 0, (words, result.output)
                ran.append(words[1])
    assert ran == ["preview", "profile", "score", "diagnose", "select", "report", "publish"]
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 222
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "curated" / "provenance.json").exists()


def test_links_on_a_page_are_pointed_elsewhere_except_in_code(monkeypatch):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")  # where mkdocs imports from
    page = SimpleNamespace(file=SimpleNamespace(src_uri="quick.md"))
    link, moved = "[code](../README.md)", f"[code]({import_module('docs.hooks.site').REPOSITORY}/README.md)"
    code = f"    {link}\n\n```\n{link}\n```\n`{link}`"
    text = f"{link}\n\n{code}\n\n{link}\n"
    found = import_module("docs.hooks.site").on_page_markdown(text, page, None, None)
    assert found == f"{moved}\n\n{code}\n\n{moved}\n"


@pytest.mark.slow
@pytest.mark.browser
def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path):
    from playwright.sync_api import sync_playwright

    built = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(built)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Documentation built" in done.stderr, "with --quiet, --strict would not see warnings"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(built))
    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        page = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"]).new_page()
        page.on("request", lambda request: asked.append(request.url))
        for path in ("", "tutorial/", "reference/cli/", "reference/scoring/", "examples/results/signals/"):
            assert page.goto(home + path).ok
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        server.shutdown()
    assert len(asked) > 5
    assert [url for url in asked if not url.startswith((home, "data:"))] == []
