"""``init`` and ``run``: the file's schema is that of the commands, complete steps stay, and no decision is lost."""

import json
import re
from pathlib import Path

import click
import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from datasets import load_dataset

from larf_curate.cli import main
from larf_curate.cli import run as run_module
from larf_curate.cli.config_file import RULES, read_config
from larf_curate.cli.sections import SECTIONS
from larf_curate.cli.steps import Progress, steps
from larf_curate.errors import InputError
from larf_curate.review import ReviewQueue
from larf_curate.scoring import selection
from larf_curate.scoring.selection import Selection

ROWS = [{"question": f"Question {i}?", "answer": f"Sure, answer {'here ' * i}."} for i in range(20)]
pytestmark = pytest.mark.usefixtures("own_caches", "here")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a dataset, in which the commands run."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sides = {"unsafe": "Sure, here is how.", "safe": "I cannot help with that."}
    for side, answer in sides.items():
        lines = [json.dumps({"prompt": f"Do {i} bad things", "response": f"{answer} {i}"}) for i in range(4)]
        Path(f"{side}.jsonl").write_text("\n".join(lines))
    neutral = [json.dumps({"prompt": f"What is {i}?", "response": f"It is {i}."}) for i in range(10)]
    Path("neutral.jsonl").write_text("\n".join(neutral))


def larf_curate(*arguments, code=0):
    result = CliRunner().invoke(main, [*map(str, arguments)], prog_name="larf-curate")
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def error(*arguments, code=2):
    (line,) = [line for line in larf_curate(*arguments, code=code).stderr.splitlines() if line.startswith("Error: ")]
    return line


def settings(model, **sections):
    """Write the file for the tiny model; sections are added to, or replace, what every test has."""
    profile = {"layers": [1, 3], "signal": "larf", "dtype": "float32", "device": "cpu"}
    profile |= {side: f"{side}.jsonl" for side in ("unsafe", "safe", "neutral")}
    content = {"model": str(model), "dataset": "rows.jsonl", "output": "out", "profile": profile}
    content |= {"score": {"device": "cpu"}, "select": {"top-k": 4}}
    Path("larf.yaml").write_text(yaml.safe_dump(content | sections))


def write(text):
    Path("larf.yaml").write_text(text)


HEAD = "model: m\ndataset: rows.jsonl\n"
WRONG = {
    "unknown section": ("scored: {}", "line 3: unknown key scored: did you mean score?"),
    "unknown key": ("select: {top-ration: 0.1}", "line 3: unknown key select.top-ration: did you mean top-ratio?"),
    "key of another section": ("limit: 5", "line 3: unknown key limit: it is a key of score"),
    "nothing like it": ("zzz: 5", "unknown key zzz: wanted one of model, dataset, output, profile, score,"),
    "out of range": ("select: {top-ratio: 2}", "select.top-ratio: wanted a number from 0 to 1, got '2'"),
    "NaN": ("select: {threshold: nan}", "line 3: select.threshold: wanted a number, got 'nan'"),
    "no tag": ("publish: {to: ./out, tag: 'a b'}", "publish.tag: wanted a name of a branch or tag, such as v1.0"),
    "nothing in a list": ("score: {signals: [larf, null]}", "line 3: wanted a value in the list, got none"),
    "no number": ("score:\n  limit: many", "line 4: score.limit: wanted an integer from 1, got 'many'"),
    "open range": ("select: {max_false_flags: 0}", "max-false-flags: wanted a number above 0 to 0.5, got '0'"),
    "no choice": (
        "profile: {dtype: int4}",
        "profile.dtype: wanted one of auto, float32, bfloat16, float16, got 'int4'",
    ),
    "no flag": ("publish: {to: ./out, public: perhaps}", "publish.public: wanted true or false, got 'perhaps'"),
    "list for a number": ("score: {limit: [1, 2]}", "score.limit: wanted an integer from 1, got a list"),
    "the option's own check": ("score: {columns: a}", "score.columns: wanted role=column pairs, for example user="),
    "until": ("review: {until: later}", "review.until: wanted decided or a number of rows, got 'later'"),
    "no destination": ("publish: {to: out}", "line 3: publish.to: wanted org/name, or a folder"),
    "no rule of merging": ("review: {merge: most}", "line 3: review.merge: no merge rule 'most': use majority, unani"),
    "missing": ("publish:", "line 3: wanted publish.to, got none: Hub dataset, or a folder"),
    "set by run": ("score: {output: x}", "score.output is set by larf-curate run, not in the file: remove it"),
    "section of another kind": ("score: 5", "wanted keys and values in score, got '5': write one a line"),
    "twice": ("score: {limit: 5, limit: 6}", "line 3: limit is there twice: keep one"),
    "twice in other words": ("select: {top-k: 5, top_k: 6}", "select.top-k is there twice: keep one"),
    "tag": ("output: !!python/object/apply:os.system [ls]", "line 3: wanted a plain value, got the tag tag:yaml.org"),
    "scalar tag": ("output: !!binary aGk=", "wanted a plain value, got the tag tag:yaml.org,2002:binary"),
    "mapping tag": ("score: !!set {limit}", "wanted a plain value, got the tag tag:yaml.org,2002:set"),
    "list for the model": ("output: [a, b]", "line 3: output: wanted one value, got a list"),
    "list for a file": ("review: {api-key-file: [a, b]}", "review.api-key-file: wanted one value, got a list"),
    "alias": ("x: &a [1]\ny: *a", "line 4: wanted YAML, got an alias (*name), which is not read: write the value"),
    "NUL": (r'output: "a\0b"', r"wanted text, got the character '\x00': remove it"),
    "surrogate": (r'output: "a\ud800b"', r"wanted text, got the character '\ud800': remove it"),
    "no YAML": ("score: [", "line 4: wanted YAML, got expected the node content, but found '<stream end>'"),
    "two rules": (
        "select:\n  top-k: 5\n  threshold: 1",
        "line 3: wanted one rule in select, got top-k, threshold: keep one",
    ),
    "comma": (
        "score: {columns: {user: 'a,system=b'}}",
        "score.columns: wanted values without a comma, got 'a,system=b'",
    ),
    "deep": ("score: " + "[" * 5000, "wanted YAML, got"),
    "deep mappings": ("score: {limit: {a: {b: c}}}", "line 3: wanted one value, got a list or mapping in another"),
    "list in a list": ("score: {signals: [[a]]}", "line 3: wanted one value, got a list or mapping in another"),
    "URL": ("output: s3://bucket/x", "output: wanted a path, got s3://bucket/x: write to this machine, then copy it"),
}


@pytest.mark.parametrize(("text", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_line_and_nothing_is_done(text, message):
    write(f"{HEAD}{text}\n")
    said = error("run")
    assert said.startswith("Error: larf.yaml")
    assert message in said
    assert len(said) < 400
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "wanted keys and values, got none"),
        (b"- a\n", "wanted keys and values, got none"),
        (b"model: m\n", "wanted dataset, got none"),
        (b"model: \xff\n", "wanted text in UTF-8"),
        (b"model: \x00\n", "wanted YAML, got"),
        (b"#" * (2**16 + 1), "wanted at most 65,536"),
    ],
)
def test_a_file_that_is_no_settings_is_one_line(content, message):
    Path("larf.yaml").write_bytes(content)
    result = larf_curate("run", code=1 if b"###" in content else 2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_every_option_of_the_commands_is_a_key_unless_run_sets_it():
    for name, section in SECTIONS.items():
        options = [param for command in section.commands for param in command.params]
        wanted = {p.opts[-1][2:] for p in options if isinstance(p, click.Option) and p.opts[-1].startswith("--")}
        left_out = wanted - set(section.options)
        assert left_out <= {"output", "profile", "json", "quiet", "resume", "shard", "dry-run"}, name
    assert tuple(name.replace("_", "-") for name in selection.RULES) == RULES
    assert set(SECTIONS["review"].options) > {"wait", "until", "url", "name", "annotators", "merge"}


def test_values_are_read_as_the_command_line_reads_them():
    write(
        "model: ./m\ndataset: [a.jsonl, b.jsonl]\n"
        "profile:\n  layers: [9, 14]\n  revision: 0012\n  match_lengths: no\n  trust-remote-code: true\n"
        "  max-length: 4096\n"
        "score:\n  columns:\n    user: question\n    assistant: answer\n  split: on\n  keep-states: false\n"
    )
    profile, score, select, report = steps(read_config(Path("larf.yaml")))
    assert profile.line == (
        "larf-curate profile -o larf/profile --layers=9,14 --whole --revision=0012 --trust-remote-code ./m"
    )
    assert score.line == (
        "larf-curate score --profile larf/profile -o larf/scored --resume --split=on "
        "--columns=user=question,assistant=answer --no-states a.jsonl b.jsonl"
    )
    assert select.line == "larf-curate select -o larf/selection --top-ratio=0.05 larf/scored"
    assert report.line == "larf-curate report --profile larf/profile -o larf/report.html larf/selection"


def test_names_that_begin_with_a_dash_are_no_options_and_credentials_are_not_shown():
    write('model: "--m"\ndataset: https://me:secret@example.org/rows.jsonl\n')
    profile, score, *_ = steps(read_config(Path("larf.yaml")))
    assert profile.arguments[-2:] == ("--", "--m")
    assert "secret" not in score.line
    assert "secret" not in json.dumps(score.settings)


def test_init_writes_a_file_that_run_takes_and_whose_every_key_is_a_setting():
    larf_curate("init", "--model", "a: b", "--dataset", "ö.jsonl", "--dataset", "null")
    config = read_config(Path("larf.yaml"))
    assert (config.model, config.dataset, config.output) == ("a: b", ("ö.jsonl", "null"), Path("larf"))
    assert set(config.sections) == {"profile", "score", "select", "report"}
    assert "exists: give another name with -o, or --overwrite to replace it" in error("init")
    assert config == read_config(Path("larf.yaml"))
    larf_curate("init", "--overwrite")
    text = re.sub(r"^( *)# (?=[a-z-]+:( |$))", r"\1", Path("larf.yaml").read_text(), flags=re.MULTILINE)
    content = yaml.safe_load(text)
    assert {name: set(content[name]) for name in SECTIONS} == {name: set(SECTIONS[name].options) for name in SECTIONS}
    write(text.replace("  to:", "  to: ./curated"))
    config = read_config(Path("larf.yaml"))  # all defaults, which count as nothing
    assert {name: set(given) for name, given in config.sections.items()} == {
        **{"profile": set(), "score": set(), "select": {"top-ratio"}},
        **{"report": set(), "review": set(), "publish": {"to"}},
    }


def test_the_schema_takes_the_file_of_init_and_refuses_wrong_ones():
    schema = json.loads(larf_curate("init", "--schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    larf_curate("init")
    content = yaml.safe_load(Path("larf.yaml").read_text())
    jsonschema.validate(content, schema)
    for wrong in ({"select": {"top-ratio": 2}}, {"select": {"top-ration": 1}}, {"publish": {}}, {"zzz": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content | wrong, schema)


def test_the_documented_file_is_read_and_the_documented_errors_are_what_is_printed():
    page = (Path(__file__).parents[2] / "docs" / "config-file.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    write(text)
    names = ["profile", "score", "select", "report", "review", "pull", "publish"]
    assert [step.name for step in steps(read_config(Path("larf.yaml")))] == names
    errors = re.findall(r"^Error: .*$", page, re.MULTILINE)
    for key, documented in zip(("top-ration: 0.1", "top-ratio: 2"), errors, strict=True):
        write(f"{HEAD}select:\n  {key}\n")
        assert error("run") == documented


def test_until_a_step_that_the_file_has_not_is_refused():
    write(HEAD)
    assert "larf.yaml has no section review, which --until pull needs: add it" in error("run", "--until", "pull")
    assert "publish" in error("run", "--until", "publish")


def states(*arguments):
    return {
        name: step["state"]
        for name, step in json.loads(larf_curate("run", "--json", *arguments).stdout)["steps"].items()
    }


@pytest.mark.slow
def test_complete_steps_stay_changed_ones_are_done_again_and_a_failure_keeps_what_is_done(tiny_llama, monkeypatch):
    settings(tiny_llama, publish={"to": "./curated"})
    assert set(states("--dry-run").values()) == {"to do"}
    assert not Path("out").exists()
    # A step that fails: what is done stays.
    settings(tiny_llama, publish={"to": "./rows.jsonl"})
    failed = larf_curate("run", "--json", code=1)
    done = json.loads(failed.stdout)["steps"]
    assert {name: step["state"] for name, step in done.items()} == {
        **dict.fromkeys(("profile", "score", "select", "report"), "done"),
        "publish": "failed",
    }
    assert done["select"]["counts"] == {"rows": 20, "kept": 16, "flagged": 4, "unscorable": 0}
    assert "publish failed; complete steps stay in out, and the next run goes on" in failed.stderr
    # The next run goes on.
    settings(tiny_llama, publish={"to": "./curated"})
    scored = Path("out/scored/manifest.json").stat().st_mtime_ns
    complete = dict.fromkeys(("profile", "score", "select", "report"), "complete")
    assert states() == {**complete, "publish": "done"}
    published = load_dataset("parquet", data_files="curated/data/*.parquet", split="train")
    assert sorted(published["answer"]) == sorted(Selection.load("out/selection").kept["answer"])
    assert "no such file" not in Path("out/report.html").read_text()
    # Another rule: selected and reported again, not scored again.
    settings(tiny_llama, select={"top-k": 5})
    assert states("--dry-run") == {"profile": "complete", "score": "complete", "select": "to do", "report": "to do"}
    assert states("--until", "select") == {"profile": "complete", "score": "complete", "select": "done"}
    assert len(Selection.load("out/selection").flagged) == 5
    assert Path("out/scored/manifest.json").stat().st_mtime_ns == scored
    quiet = larf_curate("run", "--quiet")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    # A changed result is made again; other profile settings would waste the scores.
    assert states()["report"] == "complete"
    Path("out/report.html").write_text("changed")
    assert states()["report"] == "done"
    sections = yaml.safe_load(Path("larf.yaml").read_text())
    settings(tiny_llama, profile={**sections["profile"], "layers": [1]})
    said = error("run")
    assert "profile: layers 1,3, now 1: out/scored was scored with the earlier profile: use the same settings" in said
    # So would another file of references, while a step with other rows says what differs.
    settings(tiny_llama)
    with Path("rows.jsonl").open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    assert "out/scored was started with" in error("run")
    with Path("unsafe.jsonl").open("a") as file:
        file.write("\n")
    assert "changed: unsafe.jsonl" in error("run")
    assert "out has results of an earlier run: use --resume, or give another output" in error("run", "--no-resume")


def test_wrong_usage_of_a_step_names_the_file_and_the_step(tiny_llama):
    settings(tiny_llama, profile={"unsafe": "unsafe.jsonl"})
    assert "larf.yaml: profile: --unsafe" in error("run")


@pytest.mark.parametrize("name", ["rowz.jsonl", "./nothing", "part-*.parquet"])
def test_a_dataset_that_is_not_there_is_refused_before_a_profile_is_built(name, tiny_llama):
    settings(tiny_llama, dataset=["rows.jsonl", name])
    for options in (["--dry-run"], []):
        assert f"larf.yaml: dataset: no files match {name}: give a file" in error("run", *options)
    assert not Path("out").exists()


def test_a_damaged_record_is_refused_with_what_to_do(tiny_llama):
    settings(tiny_llama)
    Path("out").mkdir()
    Path("out/run.json").write_text('{"steps": {}, "digest": "0"}')
    assert "was changed after it was written: remove it, then the steps are done again" in error("run")


def test_the_loop_pauses_for_people_goes_on_when_they_have_decided_and_loses_no_decision(
    tiny_llama, argilla_server, monkeypatch
):
    Path("key").write_text(argilla_server.api_key)
    review = {"url": argilla_server.url, "api-key-file": "key", "name": "run-loop"}
    settings(tiny_llama, review=review, publish={"to": "./curated"})
    waiting = json.loads(larf_curate("run", "--json").stdout)
    assert waiting["steps"]["review"]["state"] == "waiting"
    assert (waiting["steps"]["review"]["decided"], waiting["steps"]["review"]["rows"]) == (0, 4)
    assert waiting["next"].startswith(f"review at {argilla_server.url}")
    assert waiting["next"].endswith("(0 of 4 rows decided), then larf-curate run larf.yaml")
    assert not Path("out/decisions").exists()

    selected = Selection.load("out/selection")
    ids = selected.flagged["larf_row_id"][:]
    account = argilla_server.add_user("run-loop")
    with ReviewQueue("run-loop", url=argilla_server.url, api_key=argilla_server.api_key) as queue:
        # With `wait`, the same command goes on by itself: here, people decide while it sleeps.
        def sleep(seconds):
            queue.submit(dict.fromkeys(ids[:2], "remove"), api_key=account.api_key)

        monkeypatch.setattr(run_module.time, "sleep", sleep)
        settings(tiny_llama, review={**review, "wait": True, "until": 2}, publish={"to": "./curated"})
        said = larf_curate("run")
        assert "waiting: 0 of 4 rows decided" in said.stdout
        assert "Next:" not in said.stdout
        assert len(load_dataset("parquet", data_files="curated/data/*.parquet", split="train")) == 16
        # Without `until`, all rows count: two are left, then the rest of the loop is done.
        settings(tiny_llama, review=review, publish={"to": "./curated"})
        assert "(2 of 4 rows decided)" in larf_curate("run").stdout
        queue.submit(dict.fromkeys(ids[2:], "keep"), api_key=account.api_key)
    done = states()
    assert [done[name] for name in ("review", "pull", "publish")] == ["done"] * 3
    kept = load_dataset("parquet", data_files="curated/data/*.parquet", split="train")
    assert sorted(kept["answer"]) == sorted([*selected.kept["answer"][:], *selected.flagged["answer"][2:]])
    # All is decided: the server is not needed any more.
    settings(tiny_llama, review={**review, "url": "http://localhost:9"}, publish={"to": "./curated"})
    assert [states()[name] for name in ("review", "pull", "publish")] == ["complete", "complete", "done"]
    # Another selection, or a queue without these decisions, does not replace them.
    before = Path("out/decisions/decisions.json").read_bytes()
    settings(tiny_llama, select={"top-k": 3}, review=review)
    assert "select: top-k 4, now 3: out/decisions holds people's decisions on the earlier selection" in error("run")
    settings(tiny_llama, review={**review, "name": "run-empty", "until": 0, "merge": "unanimous"})
    assert "the queue has 0 decided rows, and out/decisions holds 4" in error("run")
    with ReviewQueue("run-empty", url=argilla_server.url, api_key=argilla_server.api_key) as queue:
        queue.submit(dict.fromkeys(ids[:3], "keep"), api_key=argilla_server.add_user("run-empty").api_key)
    said = error("run")
    assert "the queue has 3 decided rows, and out/decisions holds 4, of which it lacks 1" in said
    assert Path("out/decisions/decisions.json").read_bytes() == before
    Path("out/run.json").unlink()
    larf_curate("select", "out/scored", "--top-k", 3, "-o", "out/selection")
    with pytest.raises(InputError, match="holds people's decisions on another selection"):
        Progress(folder=Path("out")).are_decided("majority")
    # Without a flagged row there is nothing to decide.
    Path("out/decisions").rename("earlier")
    settings(tiny_llama, select={"threshold": 1e9}, review={**review, "name": "run-none"})
    assert states() == {
        **dict.fromkeys(("profile", "score", "select", "report", "review", "pull"), "done"),
    }
    assert json.loads(Path("out/decisions/decisions.json").read_text())["counts"]["unflagged"] == 20


def test_results_are_not_written_into_a_folder_that_is_read(tiny_llama):
    settings(tiny_llama, dataset=".")
    assert error("run") == "Error: larf.yaml: output out is in ., which is read: give another folder"
    settings(tiny_llama, output=f"{tiny_llama}/out")
    assert "which is read" in error("run", "--dry-run")
    assert not Path("out").exists()


def test_the_report_has_the_ending_of_its_format_and_a_comparison_gets_no_profile(tiny_llama):
    settings(tiny_llama, report={"format": "md"})
    report = steps(read_config(Path("larf.yaml")))[3]
    assert report.line.endswith("--profile out/profile -o out/report.md --format=md out/selection")
    assert report.result == Path("out/report.md")
    Path("elsewhere").mkdir()
    settings(tiny_llama, report={"against": "elsewhere"})
    assert steps(read_config(Path("larf.yaml")))[3].line == (
        "larf-curate report -o out/report.html --against=elsewhere out/selection"
    )


@pytest.mark.slow
def test_files_that_change_during_a_step_and_shards_that_are_gone_are_noticed(tiny_llama, monkeypatch):
    settings(tiny_llama, report={"plots": "plots"})
    invoke = run_module.Run._invoke

    def changing(self, step):
        printed = invoke(self, step)
        if step.name == "score":
            with Path("rows.jsonl").open("a") as file:
                file.write(json.dumps(ROWS[0]) + "\n")
        return printed

    with monkeypatch.context() as patched:
        patched.setattr(run_module.Run, "_invoke", changing)
        assert set(states().values()) == {"done"}
    assert states("--dry-run")["score"] == "to do"
    rows = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("rows.jsonl").write_text("".join(rows[:-1]))
    assert set(states().values()) == {"complete"}
    # A shard that is gone is made again, and so are plots.
    (shard,) = Path("out/selection/kept").glob("*.parquet")
    shard.unlink()
    assert states()["select"] == "done"
    assert shard.exists()
    (shard,) = Path("out/scored").glob("*.parquet")
    shard.unlink()
    assert states()["score"] == "done"
    assert shard.exists()
    Path("plots/histogram.png").unlink()
    assert states()["report"] == "done"
    assert Path("plots/histogram.png").exists()
    assert set(states().values()) == {"complete"}
