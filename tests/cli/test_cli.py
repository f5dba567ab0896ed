"""The command line: help, exit codes, one JSON object, one line for each error, and the chain of all commands."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from datasets import Dataset, load_dataset

from larf_curate import __version__
from larf_curate.cli import COMMANDS, main
from larf_curate.cli.output import echo_table, visible
from larf_curate.review import ReviewQueue
from larf_curate.scoring import search
from larf_curate.scoring.exemplars import ExemplarIndex
from larf_curate.scoring.selection import Selection

ROWS = [{"question": f"Question {i}?", "answer": f"Sure, answer {'here ' * i}."} for i in range(20)]
pytestmark = pytest.mark.usefixtures("own_caches")


def run(*arguments, code=0, **options):
    """Run a command as from the shell; errors that are not clean escape."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="larf-curate", **options)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def error(*arguments, code=2) -> str:
    """The one line that a failing command says; nothing on standard output."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("Usage:", "Try ", "Scoring")) and line]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Options that name small files of references."""
    folder = tmp_path_factory.mktemp("references")
    chats = {"unsafe": "Sure, here is how.", "safe": "I cannot help with that."}
    neutral = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(10)]
    for name, answer in chats.items():
        lines = [json.dumps({"prompt": f"Do {i} bad things", "response": f"{answer} {i}"}) for i in range(4)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "neutral.jsonl").write_text("\n".join(json.dumps(row) for row in neutral))
    return [part for name in ("unsafe", "safe", "neutral") for part in (f"--{name}", folder / f"{name}.jsonl")]


@pytest.fixture(scope="module")
def profile(tiny_llama, sides, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "profile"
    options = ["--layers", "1,3", "--signal", "larf", "--dtype", "float32", "--device", "cpu"]
    run("profile", tiny_llama, *options, *sides, "-o", folder)
    return folder


def leaves(command=main, path=()):
    context = click.Context(command)
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name in command.list_commands(context):
        yield from leaves(command.get_command(context, name), (*path, name))


@pytest.mark.parametrize("path", [(), ("review",), *(path for path, _ in leaves())], ids=" ".join)
def test_every_command_has_help_with_a_line_for_every_option(path):
    text = run(*path, "--help").output
    assert text.startswith("Usage: larf-curate")
    command = dict(leaves()).get(path)
    for param in command.params if command else ():
        assert param.param_type_name == "argument" or param.help or isinstance(param.type, click.Choice), param.name


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "review"])
def test_the_help_of_every_command_shows_an_example(name):
    assert f"larf-curate {name} " in run(name, "--help", terminal_width=200).output.split("\n", 1)[1]


def test_help_and_version_import_no_heavy_library():
    code = (
        "import sys\nfrom larf_curate.cli import main\n"
        "try: main(sys.argv[1:], prog_name='larf-curate')\n"
        "except SystemExit as end: assert not end.code\n"
        "print({'torch', 'datasets', 'transformers', 'numpy', 'argilla'} & set(sys.modules))"
    )
    for option in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, option], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "set()"
    assert __version__ in done.stdout


@pytest.mark.slow
def test_the_module_runs_as_the_command_and_an_error_is_no_traceback(tmp_path):
    (tmp_path / "empty").mkdir()
    command = [
        sys.executable,
        "-m",
        "larf_curate",
        "select",
        str(tmp_path / "empty"),
        "-o",
        str(tmp_path / "sel"),
        "--top-k",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_wrong_usage_is_exit_code_2(tmp_path, rows, profile):
    assert "No such command 'nonsense'" in error("nonsense")
    assert "No such command" in error("\x1b[31mred")
    assert "--profile" in error("score", rows, "-o", tmp_path / "out")
    assert "does not exist" in error("select", tmp_path / "absent", "-o", tmp_path / "sel", "--top-k", 1)
    assert "--top-ratio" in error("select", tmp_path, "-o", tmp_path / "sel", "--top-ratio", 2)
    assert "role=column" in error("score", rows, "--profile", profile, "-o", tmp_path / "out", "--columns", "a")
    for wrong in ("2/2", "0/0", "-1/2", "1", "1/2/3", "a/b", "1/\N{ARABIC-INDIC DIGIT TWO}"):
        shard = f"--shard={wrong}"
        assert "from 0 to N-1" in error("score", rows, "--profile", profile, "-o", tmp_path / "out", shard)
    score = ("score", rows, "--profile", profile, "-o", tmp_path / "out")
    assert "--actors, --gpus-per-actor needs --engine ray" in error(*score, "--actors", 2, "--gpus-per-actor", 0.5)
    for option in (("--num-proc", 2), ("--shard", "0/2")):
        assert "are for --engine local" in error(*score, "--engine", "ray", *option)
    said = error("profile", "m", "-o", tmp_path / "p", "--layers", "nine")
    assert "block numbers from 0, for example 9,14, or all, auto, or output of the layers command; got nine" in said
    assert "go together" in error("profile", "m", "-o", tmp_path / "p", "--layers", "9", "--unsafe", rows)
    both = ("--unsafe", rows, "--safe", rows, "--references", rows)
    assert "got all three" in error("profile", "m", "-o", tmp_path / "p", *both)
    assert "wanted a folder outside of" in error("select", tmp_path, "-o", tmp_path, "--top-k", 1)
    assert not (tmp_path / "out").exists()


def test_unusable_input_is_exit_code_2_and_one_line(tmp_path, rows, profile, tiny_llama):
    out = ("-o", tmp_path / "out")
    absent = tmp_path / "absent"
    assert "larf_profile.json" in error("score", rows, "--profile", tmp_path, *out)
    assert "no files match" in error("score", absent, "--profile", profile, *out)
    assert "got 'nonsense'" in error("score", rows, "--profile", profile, *out, "--signals", "nonsense")
    assert "--columns" in error("score", _odd(tmp_path), "--profile", profile, *out)
    (tmp_path / "empty").mkdir()
    assert "manifest.json" in error("select", tmp_path / "empty", "-o", tmp_path / "sel", "--top-k", 1)
    run("score", rows, "--profile", profile, *out, "--device", "cpu")
    assert "exactly one of" in error("select", tmp_path / "out", "-o", tmp_path / "sel")
    assert "--resume" in error("score", rows, "--profile", profile, *out)
    error("profile", tiny_llama, "--layers", "1", "--references", absent, "-o", tmp_path / "p")


def _odd(folder: Path) -> Path:
    path = folder / "odd.csv"
    path.write_text("frage,antwort\nWas?,Das.\n")
    return path


def test_a_model_that_fails_or_is_another_one_is_one_line(tmp_path, rows, profile, tiny_qwen2):
    out = ("-o", tmp_path / "out")
    said = error("score", rows, "--profile", profile, *out, "--model", tiny_qwen2, "--device", "cpu")
    assert "not the model this profile was built with" in said
    error("score", rows, "--profile", profile, *out, "--model", tmp_path, "--device", "cpu", code=1)
    error("profile", tiny_qwen2, "--layers", "99", "-o", tmp_path / "p", "--device", "cpu")
    assert not (tmp_path / "p").exists()


def test_the_file_system_is_exit_code_1_and_one_line(tmp_path, rows, profile):
    (tmp_path / "file").write_text("")
    error("score", rows, "--profile", profile, "-o", tmp_path / "file" / "out", code=1)


def test_an_error_shows_control_characters_and_keeps_to_one_line(tmp_path, profile):
    said = error("score", "no\x1b[31m\nsuch*", "--profile", profile, "-o", tmp_path / "out")
    assert "\x1b" not in said
    assert "no\N{REPLACEMENT CHARACTER}[31m such*" in said


def test_tables_show_cells_literally(capsys):
    echo_table("T", ("a", "b"), [("[bold]x[/bold]", "\x1b[31m\x07\ud800")])
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert not {"\x1b", "\x07", "\ud800"} & set(shown)
    assert visible("a\tb\n\u202ec\x9b") == "a\tb\n\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}"


def test_json_prints_one_object_and_nothing_else(tmp_path, rows, tiny_llama, sides, capfd):
    options = ["--layers", "1,3", "--signal", "larf", "--dtype", "float32", "--device", "cpu"]
    made = json.loads(run("profile", tiny_llama, *options, *sides, "-o", tmp_path / "p", "--json").stdout)
    assert (made["profile"], made["layers"]) == (str(tmp_path / "p"), [1, 3])
    arguments = ("--profile", tmp_path / "p", "-o", tmp_path / "out", "--device", "cpu", "--limit", 12)
    scored = json.loads(run("score", rows, *arguments, "--json").stdout)
    assert (scored["rows"], scored["status"], scored["first_unscorable"]) == (12, {"ok": 12}, [])
    assert scored["exemplar_search"] == {"kind": "flat", "recall": 1.0}
    chosen = run("select", tmp_path / "out", "--top-ratio", 0.25, "-o", tmp_path / "sel", "--json")
    assert json.loads(chosen.stdout)["counts"] == {"rows": 12, "kept": 9, "flagged": 3, "unscorable": 0}
    assert chosen.stderr == ""
    assert capfd.readouterr().out == ""


def test_approximate_search_of_exemplars_is_not_silent(tmp_path, rows, profile, monkeypatch):
    monkeypatch.setattr(search, "EXACT_UP_TO", 500)
    monkeypatch.setattr(search, "HELD_OUT", 100)
    topics = np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32)
    names = tuple(map(str, range(600)))
    index = ExemplarIndex(states=np.repeat(topics, 100, axis=0), ids=names, labels=names, layer=1)
    index.save(tmp_path / "exemplars")
    arguments = ("score", rows, "--profile", profile, "--exemplars", tmp_path / "exemplars", "--device", "cpu")
    assert "approximate search, which finds" in run(*arguments, "-o", tmp_path / "out").stdout
    found = json.loads(run(*arguments, "-o", tmp_path / "again", "--json").stdout)["exemplar_search"]
    assert found["kind"] == "ivf"
    assert 0.95 <= found["recall"] <= 1
    monkeypatch.setattr(search, "EXACT_UP_TO", 600)
    assert "exemplar_search ivf-1, now null" in error(*arguments, "-o", tmp_path / "out", "--resume"), (
        "would mix kinds of search"
    )


def test_shares_of_processes_are_finished_by_a_run_that_resumes(tmp_path, rows, profile):
    arguments = ("score", rows, "--profile", profile, "-o", tmp_path / "out", "--device", "cpu")
    told = json.loads(run(*arguments, "--shard", "1/2", "--json").stdout)
    assert told == {"scored": str(tmp_path / "out"), "shard": "1/2", "rows": 0, "files": 0, "status": {}}
    told = run(*arguments, "--shard", "0/2").stdout
    assert "Shard 0/2" in told
    assert "finish with the same command and --resume instead of --shard" in told
    assert "not finished" in error("select", tmp_path / "out", "--top-k", 1, "-o", tmp_path / "sel")
    run(*arguments, "--resume")
    run("select", tmp_path / "out", "--top-k", 1, "-o", tmp_path / "sel")


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--num-proc", "1"], ["--num-proc", "2"], ["--shard=0/2"]])
def test_a_run_that_is_interrupted_says_how_to_continue(tmp_path, rows, profile, options):
    rows.write_text(rows.read_text() * 500)
    command = ["score", rows, "--profile", profile, "-o", tmp_path / "my out", "--device", "cpu", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "larf_curate", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    while not (tmp_path / "my out/plan.json").exists():
        assert process.poll() is None
        time.sleep(0.05)
    while process.poll() is None:  # Python loses one that arrives while an object is being deleted
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=2)
    said = process.communicate()[1].splitlines()
    # Of code that was compiled from a string, Python remembers the interrupt: then the signal ends it, 130 in a shell.
    assert process.returncode in (130, -signal.SIGINT)
    wanted = shlex.join(["larf-curate", *map(str, command), *([] if "--shard=0/2" in options else ["--resume"])])
    assert f"Error: interrupted; what was scored stays in {tmp_path / 'my out'}. Continue with: {wanted}" in said


def test_rows_that_cannot_be_scored_are_counted_and_explained(tmp_path, profile):
    path = tmp_path / "rows.jsonl"
    chats = [None, [{"role": "user", "content": "Hi"}, {"role": "wiz\x1bard", "content": "Hello"}]]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    told = run("score", path, "--profile", profile, "-o", tmp_path / "out", "--device", "cpu").stdout
    assert "malformed" in told
    assert "wiz" in told
    assert "\x1b" not in told
    run("select", tmp_path / "out", "--top-k", 1, "-o", tmp_path / "sel")
    assert list(Selection.load(tmp_path / "sel").flagged["larf_status"]) == ["empty", "malformed"]


def test_the_whole_chain_from_a_model_to_a_published_folder(tmp_path, rows, profile, argilla_server):
    server = ("--url", argilla_server.url, "--api-key-file", tmp_path / "key", "--name", "cli-chain")
    (tmp_path / "key").write_text(argilla_server.api_key)
    run("score", rows, "--profile", profile, "-o", tmp_path / "scored", "--device", "cpu")
    run("select", tmp_path / "scored", "--top-k", 4, "-o", tmp_path / "selection")
    run("report", tmp_path / "selection", "-o", tmp_path / "report.html")
    run("review", "push", tmp_path / "selection", *server)
    flagged = Selection.load(tmp_path / "selection").flagged
    ids, answers = flagged["larf_row_id"][:], flagged["answer"][:]
    account = argilla_server.add_user("chain")
    with ReviewQueue("cli-chain", url=argilla_server.url, api_key=argilla_server.api_key) as queue:
        queue.submit(dict(zip(ids, ("remove", "keep", "remove"), strict=False)), api_key=account.api_key)
    run("review", "pull", tmp_path / "selection", "-o", tmp_path / "decisions", *server)
    run("publish", tmp_path / "decisions", "--to", tmp_path / "published")
    published = load_dataset("parquet", data_files=str(tmp_path / "published" / "data" / "*.parquet"), split="train")
    gone = {answers[0], answers[2], answers[3]}  # removed, removed, and withheld for want of a decision
    assert sorted(published["answer"]) == sorted(row["answer"] for row in ROWS if row["answer"] not in gone)
    assert answers[0] in (tmp_path / "report.html").read_text()
    states = [row["larf_score"] for row in Dataset.from_parquet(str(tmp_path / "scored" / "rows.parquet"))]
    assert sorted(states)[-4:] == sorted(flagged["larf_score"][:])


def test_a_chat_template_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "template").write_bytes(b"\xff\xfe")
    result = run("profile", "model", "-o", tmp_path / "p", "--chat-template", tmp_path / "template", code=2)
    assert "wanted a text file in UTF-8" in " ".join(result.output.split())


def test_tables_cut_nothing_and_keep_names_on_one_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    names, ids = ("alpaca-3b19aa", "a-name-of-20-letters"), [f"{i:032x}" for i in range(40, 43)]
    echo_table("T", ("queue", "a", "b", "c"), [(name, *ids) for name in names])
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    lines = [cells for cells in lines if len(cells) == 4]
    assert [cells[0] for cells in lines if cells[0]] == list(names)
    for column, whole in enumerate(ids, start=1):
        assert "".join(cells[column] for cells in lines) == whole * 2


def test_a_long_table_ends_with_the_number_of_rows_not_shown(capsys):
    echo_table("Numbers", ("number",), [(i,) for i in range(100, 125)], limit=20)
    shown = capsys.readouterr().out
    assert "119" in shown
    assert "120" not in shown
    assert shown.endswith("and 5 more\n")
    echo_table("Numbers", ("number",), [(i,) for i in range(20)], limit=20)
    assert "more" not in capsys.readouterr().out


def test_results_are_not_written_into_their_input(tmp_path):
    scored = tmp_path / "scored"
    scored.mkdir()
    (scored / "manifest.json").write_text("{}")
    for output in (scored, scored / "selection", scored / "a" / ".." / "b"):
        assert "wanted a folder outside of" in error("select", scored, "--top-k", 1, "-o", output)
    assert "give a name ending in .html" in error("report", scored, "-o", scored / "manifest.json")
    assert (scored / "manifest.json").read_text() == "{}"
    assert os.listdir(scored) == ["manifest.json"]


@pytest.mark.parametrize(
    "command", ["score rows --profile p", "select . --top-k 1", "report .", "layers m", "profile m"]
)
def test_a_name_that_is_not_utf_8_is_refused_as_output(command):
    name = os.fsdecode(b"out-\xff")
    assert r"wanted a name in UTF-8, got 'out-\udcff'" in error(*command.split(), "-o", name)


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("a" * 300, "(File name too long): give a shorter name"),
        ("file/b", "(Not a directory): a part of the path is a file; give a folder"),
    ],
)
def test_errors_of_the_file_system_say_what_to_do(tmp_path, rows, profile, output, advice):
    (tmp_path / "file").write_text("")
    assert advice in error("score", rows, "--profile", profile, "-o", tmp_path / output, "--device", "cpu", code=1)
