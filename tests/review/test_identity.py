"""Each dataset and profile has a queue of its own, which the commands find; rows of another profile are refused."""

import json
import os
import re
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.errors import InputError
from larf_curate.records import seal
from larf_curate.review import ReviewQueue
from larf_curate.review.identity import Identity
from tests.fixtures.review_rows import questions, selection, with_profile


def of_dataset(name, *, start=0, digest="a" * 64, count=4):
    """A selection of a dataset of this name, scored by the profile of this digest."""
    made = with_profile(selection(questions(count, start), flagged=count), digest=digest)
    return replace(made, scored=seal(made.scored | {"source": {"dataset": name, "sha256": name}}))


@pytest.mark.parametrize(
    ("dataset", "label"),
    [
        ("tatsu-lab/alpaca", "alpaca"),
        ("my rows.jsonl.gz", "my-rows"),
        ("s3://bucket/Train_Set.parquet", "train-set"),
        ("数据.jsonl", "rows"),
        ("a.jsonl, b.jsonl", "a-jsonl-b"),
        ("x" * 300, "x" * 40),
        ("", "rows"),
    ],
)
def test_names_are_readable_stable_and_differ(dataset, label):
    first = Identity.of(of_dataset(dataset).scored)
    assert re.fullmatch(rf"{label}-[0-9a-f]{{6}}", first.name)
    assert Identity.of(of_dataset(dataset).scored).name == first.name
    others = {
        Identity.of(of_dataset(dataset, digest="b" * 64).scored).name,
        Identity.of(of_dataset("other").scored).name,
    }
    assert first.name not in others
    assert Identity.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_more_rows_of_a_dataset_belong_to_the_same_queue():
    scored = of_dataset("alpaca").scored
    limited = scored | {"source": scored["source"] | {"limit": 10}}
    assert Identity.of(limited) == Identity.of(scored)
    assert Identity.of({}) is None


def test_rows_of_another_profile_are_refused_and_change_nothing(queue):
    queue.push(of_dataset("alpaca"))
    with pytest.raises(
        InputError, match=r"rows of alpaca that the profile a{12} .* got rows of dolly .* such as 'dolly-"
    ):
        queue.push(of_dataset("dolly", start=10, digest="b" * 64))
    assert queue.status().rows == 4
    replaced = of_dataset("alpaca", digest="b" * 64)
    assert queue.push(replaced).pushed + queue.push(replaced).unchanged == 4, "all rows scored anew are no mixture"


def test_a_second_dataset_of_the_same_profile_is_told(queue, caplog):
    queue.push(of_dataset("alpaca"))
    assert caplog.text == ""
    queue.push(of_dataset("dolly", start=10))
    assert "now has rows of alpaca, dolly" in caplog.text
    summary = queue.summary()
    assert (summary.datasets, summary.profile, summary.rows) == (("alpaca", "dolly"), "a" * 12, 8)


@pytest.fixture
def run(argilla_server, tmp_path, monkeypatch):
    """Runs a review command in a workspace of its own; returns its result."""
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "250")
    (tmp_path / "key").write_text(argilla_server.api_key)
    workspace = f"space-{os.path.basename(tmp_path)}"
    argilla_server.add_user(f"user-{workspace}", workspace=workspace)

    def command(*arguments, code=0):
        server = ["--workspace", workspace, "--url", argilla_server.url, "--api-key-file", str(tmp_path / "key")]
        result = CliRunner().invoke(main, ["review", *map(str, arguments), *server])
        assert result.exit_code == code, result.output + str(result.exception)
        return result

    command.workspace = workspace
    return command


def test_the_commands_find_the_queue(run, tmp_path, argilla_server):
    assert json.loads(run("list", "--json").stdout) == {"queues": []}
    first, second = of_dataset("alpaca"), of_dataset("dolly", start=10, digest="b" * 64)
    first.save(tmp_path / "one")
    second.save(tmp_path / "two")
    names = [Identity.of(made.scored).name for made in (first, second)]
    assert names[0] in run("push", tmp_path / "one").stdout
    assert json.loads(run("status", "--json").stdout)["queue"] == names[0], "the only one"
    time.sleep(0.02)  # the order of pushes is told by the time of a file
    assert json.loads(run("push", tmp_path / "two", "--json").stdout)["queue"] == names[1]

    last = run("status")
    assert names[1] in last.stdout
    assert f"Queue {names[1]}, the one last pushed to" in last.stderr
    counts = json.loads(run("pull", tmp_path / "one", "-o", tmp_path / "dec", "--json").stdout)
    assert counts["queue"] == names[0]
    listed = json.loads(run("list", "--json").stdout)["queues"]
    assert [(q["name"], q["datasets"], q["profile"], q["rows"], q["done"]) for q in listed] == [
        (names[0], ["alpaca"], "a" * 12, 4, 0),
        (names[1], ["dolly"], "b" * 12, 4, 0),
    ]
    shown = run("list").stdout
    assert all(part in shown for part in (*names, "alpaca", "dolly"))

    for record in (tmp_path / "home" / "queues").iterdir():  # as on another machine
        record.unlink()
    refused = run("status", code=2).output
    assert f"choose one with --name {names[0]} or {names[1]}" in " ".join(refused.split())
    assert json.loads(run("status", "--name", names[1], "--json").stdout)["queue"] == names[1]
    told = run("pull", tmp_path / "one", "-o", tmp_path / "dec")
    assert f"Queue {names[0]}, which has its rows" in told.stderr


def test_rows_that_are_in_a_queue_of_another_name_stay_there(run, tmp_path, argilla_server):
    made = of_dataset("alpaca")
    made.save(tmp_path / "sel")
    run("push", tmp_path / "sel", "--name", "larf-review")
    again = run("push", tmp_path / "sel")
    assert "Queue larf-review, which has rows of" in again.stderr
    assert [queue["name"] for queue in json.loads(run("list", "--json").stdout)["queues"]] == ["larf-review"]
    other = of_dataset("alpaca", start=50)
    other.save(tmp_path / "sel")  # another selection in the same folder
    assert json.loads(run("push", tmp_path / "sel", "--json").stdout)["queue"] == Identity.of(other.scored).name


def test_a_queue_of_an_earlier_version_works_on(run, tmp_path, argilla_server):
    server = {"url": argilla_server.url, "api_key": argilla_server.api_key, "workspace": run.workspace}
    made = of_dataset("alpaca")
    with ReviewQueue(**server) as queue:
        queue.push(made.flagged)  # nothing is noted of rows without their manifest
        queue._connection.request("PATCH", f"/api/v1/datasets/{queue.dataset_id}", {"metadata": {}})
    assert json.loads(run("status", "--json").stdout)["queue"] == "larf-review"
    assert json.loads(run("list", "--json").stdout)["queues"][0]["datasets"] == []
    made.save(tmp_path / "sel")
    assert json.loads(run("pull", tmp_path / "sel", "-o", tmp_path / "dec", "--json").stdout)["queue"] == "larf-review"
