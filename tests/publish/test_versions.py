"""Branches, tags and differences of publications, through the real client to the local Hub."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from datasets import Dataset

from larf_curate.cli.publish import publish as publish_command
from larf_curate.errors import InputError, PublishError
from larf_curate.publish import RowDiff, publish
from tests.fixtures.decisions_folder import reseal, write_decisions
from tests.fixtures.hub import LocalHub

REPO = "org/curated"


def send(hub: LocalHub, folder: Path, **options):
    return publish(folder, REPO, **{"endpoint": hub.endpoint, "token": hub.token} | options)


def tags(hub: LocalHub) -> dict[str, str]:
    return hub.repos["dataset", REPO].tags


def test_a_tag_names_the_commit_also_when_nothing_changed(hub, decisions):
    first = send(hub, decisions, tag="v1")
    again = send(hub, decisions, tag="v1")
    third = send(hub, decisions, tag="v1.1")
    assert (first.tag, again.changed, third.changed) == ("v1", False, False)
    assert tags(hub) == {"v1": first.commit, "v1.1": first.commit}


def test_a_tag_of_another_commit_is_refused_before_anything_is_written(hub, decisions, tmp_path):
    first = send(hub, decisions, tag="v1")
    with pytest.raises(PublishError, match=f"has the tag v1 on another commit .{first.commit[:8]}.: give a new name"):
        send(hub, write_decisions(tmp_path / "other", rows=8), tag="v1")
    assert hub.history(REPO)[0].oid == first.commit
    assert tags(hub) == {"v1": first.commit}


@pytest.mark.parametrize("match", ["POST .*/tag/", "POST .*/commit/"])
@pytest.mark.parametrize("after", [True, False])
def test_a_lost_answer_tags_the_commit_once(hub, decisions, match, after):
    hub.fail_next(match=match, drop=True, after=after)
    done = send(hub, decisions, tag="v1")
    assert (done.changed, len(hub.history(REPO))) == (True, 2)
    assert tags(hub) == {"v1": done.commit}


def test_a_branch_is_created_from_main_and_leaves_it_alone(hub, decisions, tmp_path):
    first = send(hub, decisions)
    second = write_decisions(tmp_path / "second", rows=8)
    assert send(hub, second, branch="run/2", dry_run=True).changed
    assert list(hub.repos["dataset", REPO].branches) == ["main"]
    done = send(hub, second, branch="run/2", tag="v2")
    assert [commit.oid for commit in hub.history(REPO, revision="run/2")][:2] == [done.commit, first.commit]
    assert hub.history(REPO)[0].oid == first.commit
    assert tags(hub) == {"v2": done.commit}
    assert send(hub, second, branch="run/2").changed is False


def test_a_branch_of_a_new_repository(hub, decisions):
    done = send(hub, decisions, branch="trial")
    assert done.created
    assert hub.files(REPO) == {}
    assert hub.history(REPO, revision="trial")[0].oid == done.commit


@pytest.mark.parametrize("name", ["refs/heads/x", "a b", "a..b", "-x", "x.lock", "x/", "", "~", "a\nb"])
@pytest.mark.parametrize("option", ["branch", "tag"])
def test_names_that_git_refuses_are_wrong_usage(hub, decisions, option, name):
    with pytest.raises(InputError, match="wanted a name of a branch or tag"):
        send(hub, decisions, **{option: name})
    assert not hub.repos


def test_a_pull_request_has_neither_tag_nor_branch(hub, decisions):
    with pytest.raises(InputError, match="tag the commit once it is merged"):
        send(hub, decisions, create_pr=True, tag="v1")
    with pytest.raises(InputError, match="are opened against main"):
        send(hub, decisions, create_pr=True, branch="run")
    assert not hub.repos


def changed_kept(folder: Path, change) -> None:
    path = next((folder / "kept").glob("*.parquet"))
    rows = Dataset.from_parquet(str(path))
    Dataset.from_list([change(row) for row in rows], features=rows.features).to_parquet(path)
    reseal(folder, "decisions.json")


@pytest.mark.parametrize("on_the_hub", [True, False])
@pytest.mark.parametrize(("columns", "by"), [("scores", "larf_row_id"), ("source", "content")])
def test_the_difference_counts_rows_and_writes_nothing(hub, decisions, tmp_path, on_the_hub, columns, by):
    target = REPO if on_the_hub else tmp_path / "curated"
    options = {"endpoint": hub.endpoint, "token": hub.token, "columns": columns}

    def diff(folder):
        return publish(folder, target, diff=True, **options).diff

    assert diff(decisions) == RowDiff(added=9, removed=0, changed=0, unchanged=0, by=by)
    assert not hub.repos
    assert not (tmp_path / "curated").exists()
    first = publish(decisions, target, **options)
    assert diff(decisions) == RowDiff(added=0, removed=0, changed=0, unchanged=9, by=by)
    other = write_decisions(tmp_path / "other", rows=14)  # labels 2, 3, 5 to 13: two more
    changed_kept(other, lambda row: row | {"messages": row["messages"][:1]} if row["label"] in (3, 7) else row)
    want = {"larf_row_id": (2, 0, 2, 7), "content": (4, 2, 0, 7)}[by]
    assert diff(other) == RowDiff(**dict(zip(("added", "removed", "changed", "unchanged"), want, strict=True)), by=by)
    fewer = write_decisions(tmp_path / "fewer", rows=8)
    assert diff(fewer) == RowDiff(added=0, removed=4, changed=0, unchanged=5, by=by)
    assert publish(decisions, target, **options).commit == first.commit


def test_rows_without_ids_are_counted_as_often_as_they_occur(decisions, tmp_path):
    changed_kept(decisions, lambda row: row | {"messages": [], "label": 0 if row["label"] < 9 else 1})
    publish(decisions, tmp_path / "curated", columns="source")
    other = write_decisions(tmp_path / "other")
    changed_kept(other, lambda row: row | {"messages": [], "label": 0 if row["label"] < 11 else 1})
    found = publish(other, tmp_path / "curated", columns="source", diff=True).diff
    assert found == RowDiff(added=2, removed=2, changed=0, unchanged=7, by="content")


def test_a_published_file_that_somebody_replaced_is_not_compared(decisions, tmp_path):
    publish(decisions, tmp_path / "curated")
    (path,) = (tmp_path / "curated" / "data").iterdir()
    path.write_bytes(b"no Parquet")
    found = publish(decisions, tmp_path / "curated", replace=True, diff=True)
    assert found.diff == RowDiff(added=9, removed=0, changed=0, unchanged=0, by="larf_row_id")
    assert found.replaced == (path.relative_to(tmp_path / "curated").as_posix(),)


def test_the_command_shows_the_difference_and_publishes_to_a_branch_with_a_tag(hub, decisions, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    shown = CliRunner().invoke(publish_command, [str(decisions), "--to", REPO, "--diff"])
    assert shown.exit_code == 0, shown.output
    assert "added" in shown.output
    assert "nothing written" in shown.output
    assert not hub.repos
    done = CliRunner().invoke(publish_command, [str(decisions), "--to", REPO, "--branch", "b", "--tag", "v1"])
    assert done.exit_code == 0, done.output
    assert "tag: v1" in done.output
    assert list(tags(hub)) == ["v1"]
