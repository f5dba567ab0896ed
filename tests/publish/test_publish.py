"""Publishing through the real client to the local Hub: exactly the kept rows, one commit, the user's own card."""

import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from datasets import Dataset, load_dataset
from huggingface_hub import HfApi
from PIL import Image

from larf_curate.cli.publish import publish as publish_command
from larf_curate.columns import content_digest
from larf_curate.data import tables
from larf_curate.errors import InputError, PublishError
from larf_curate.files import sha256
from larf_curate.publish import publish
from larf_curate.publish.card import BEGIN, END, escape_inline
from larf_curate.publish.redaction import redact
from larf_curate.records import seal
from larf_curate.scoring.selection import Selection
from tests.fixtures.decisions_folder import (
    HARMFUL,
    MODEL,
    REVISION,
    kept_table,
    reseal,
    row,
    scored_record,
    selection_record,
    write_decisions,
    write_selection,
)
from tests.fixtures.hub import LocalHub

REPO = "org/curated"
SHARD = "data/train-00000-of-00001.parquet"
REMOVED = tuple(f"removed/train-0000{i}-of-00002.parquet" for i in range(2))
PICTURES = ("larf-curate/scores.png", "larf-curate/decisions.png")
FILES = {SHARD, *REMOVED, *PICTURES, "README.md", "croissant.json", "provenance.json"}
COMMIT = "POST .*/commit/"
OTHER_SPLIT = "[{split: test, path: t/*}]"
LOAD = """
import sys
from datasets import load_dataset
load_dataset(sys.argv[1], split="train").to_parquet(sys.argv[2])
"""


def send(hub: LocalHub, folder: Path, repo: str | Path = REPO, **options):
    return publish(folder, repo, **{"endpoint": hub.endpoint, "token": hub.token} | options)


def titles(hub: LocalHub, **options) -> list[str]:
    return [commit.title for commit in hub.history(REPO, **options)]


def card(hub: LocalHub) -> str:
    return hub.files(REPO)["README.md"].decode()


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str) -> str:
    assert text.count(BEGIN) == text.count(END) == 1
    return text[text.index(BEGIN) : text.index(END)]


def assert_sums(counts: dict[str, int]) -> None:
    assert counts["rows"] == counts["unflagged"] + counts["flagged"]
    assert counts["flagged"] == counts["reviewed"] + counts["withheld"]
    assert counts["reviewed"] == counts["kept"] + counts["edited"] + counts["removed"]
    assert counts["published"] == counts["unflagged"] + counts["kept"] + counts["edited"]


def load_in_a_fresh_process(hub: LocalHub, to: Path) -> pa.Table:
    command = [sys.executable, "-c", LOAD, REPO, str(to)]
    subprocess.run(command, env=hub.env(token=hub.token), check=True, capture_output=True, text=True, timeout=120)
    return pq.read_table(to)


def test_a_fresh_process_loads_exactly_the_kept_rows_in_order(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 7)
    folder = write_decisions(tmp_path / "decisions", rows=25)
    done = send(hub, folder)
    loaded = load_in_a_fresh_process(hub, tmp_path / "loaded.parquet")
    assert loaded.equals(kept_table(folder))
    assert loaded["label"].to_pylist() == [2, 3, *range(5, 25)]
    assert [file.path for file in done.files if file.path.startswith("data/")] == [
        f"data/train-0000{i}-of-00004.parquet" for i in range(4)
    ]
    assert not any(HARMFUL.encode() in content for content in hub.files(REPO).values())


def test_all_arrives_in_one_private_commit_with_digests(hub, decisions):
    done = send(hub, decisions)
    held = hub.files(REPO)
    assert titles(hub) == ["Publish 9 rows with larf-curate", "initial commit"]
    assert hub.history(REPO)[0].oid == done.commit
    assert {file.path: file.sha256 for file in done.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in held.items()
    }
    assert held.keys() == FILES
    assert json.loads(held["provenance.json"])["files"][SHARD]["sha256"] == hashlib.sha256(held[SHARD]).hexdigest()
    assert (done.private, done.created, done.changed) == (True, True, True)
    assert hub.repos["dataset", REPO].private


def test_public_only_where_asked(hub, decisions):
    assert send(hub, decisions, private=False).private is False
    assert not hub.repos["dataset", REPO].private


def test_the_card_states_how_the_rows_were_chosen(hub, decisions):
    send(hub, decisions)
    stated = section(card(hub))
    for fact in (
        "9 of 12 rows are published",
        "| in the source dataset | 12 |",
        "| flagged | 5 |",
        "| not flagged, published | 7 |",
        "| … kept by people, published | 1 |",
        "| … edited by people, published | 1 |",
        "| … removed by people | 2 |",
        "| … withheld, since people have not decided, or are unsure | 1 |",
        "| **published** | **9** |",
        "1 of the flagged rows could not be scored.",
        "| source dataset | path org/original, split train |",
        f"| model | {MODEL} |",
        f"| model revision | {REVISION} |",
        "| layers (0-based decoder blocks) | 9, 14 |",
        "| signal | larf |",
        "| selection rule | top_ratio 0.05 |",
        "| threshold on `larf_score` | 0.123457 |",
        "| reviewed by | 3 people, merge rule majority |",
        "| weapons | 2 |",
        "| published with | larf-curate 0.1.0 |",
        "A low score does not prove\nthat a row is safe",
    ):
        assert fact in stated
    data = metadata(card(hub))
    assert data["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]},
        {"config_name": "removed", "data_files": [{"split": "train", "path": "removed/train-*"}]},
    ]
    assert [info["splits"][0]["num_examples"] for info in data["dataset_info"]] == [9, 3]
    assert set(data["tags"]) >= {"larf-curate", "safety"}


def test_provenance_nests_every_stage_and_names_nobody(hub, decisions):
    send(hub, decisions)
    text = hub.files(REPO)["provenance.json"].decode("ascii")
    record = json.loads(text)
    assert record["stage"]["selection"]["scored"]["profile"]["layers"] == [9, 14]
    assert record["records"]["decisions.json"] == sha256(decisions / "decisions.json")
    assert record["packages"]["datasets"]
    assert record["reviewers"] == 3
    assert "annotator-" not in text + card(hub)


@pytest.mark.filterwarnings("ignore:Support for class-based `config`:DeprecationWarning")  # argilla 2.8 on pydantic 2
def test_what_the_review_wrote_is_published_without_the_answers_that_were_edited_away(hub, tmp_path):
    from larf_curate.review.decisions.merge import Decision
    from larf_curate.review.decisions.outcome import Decisions

    rows = [row(i, score=i / 10) | {"larf_status": "ok", "larf_reason": "top", "larf_index": i} for i in range(6)]
    data = Dataset.from_list(rows)
    selection = Selection(kept=data.select(range(3)), flagged=data.select([5, 4, 3]), rule={"top_k": 3}, threshold=0.3)
    made = {5: ("edit", "A better answer."), 4: ("remove", None), 3: ("unsure", None)}
    judged = tuple(
        Decision(
            row_id=rows[i]["larf_row_id"],
            status="decided",
            decision=verdict,
            corrected_answer=corrected,
            annotators=("annotator-alice",),
            content_digest=content_digest(rows[i]),
        )
        for i, (verdict, corrected) in made.items()
    )
    Decisions(judged, "arbiter:annotator-alice").apply(selection).save(tmp_path / "outcome")
    done = send(hub, tmp_path / "outcome")
    loaded = load_dataset(REPO, split="train", token=hub.token)
    assert loaded.column_names == ["messages", "label", "larf_row_id", "larf_score", "larf_decision"]
    assert loaded["label"][:] == [0, 1, 2, 5]
    assert loaded[3]["messages"][1]["content"] == "A better answer."
    assert {"edited": 1, "removed": 1, "withheld": 1, "reviewed": 2}.items() <= done.counts.items()
    assert_sums(done.counts)
    assert "1 person, merge rule arbiter |" in section(card(hub))
    assert not any(b"annotator-" in content for content in hub.files(REPO).values())


def test_a_selection_is_published_without_working_columns_and_says_that_nobody_looked(hub, tmp_path):
    folder = write_selection(tmp_path / "selection")
    done = send(hub, folder)
    loaded = load_dataset(REPO, split="train", token=hub.token)
    assert loaded.column_names == ["messages", "label", "larf_row_id", "larf_score"]
    assert loaded.to_list() == kept_table(folder).select(loaded.column_names).to_pylist()
    assert "not reviewed by people" in section(card(hub))
    assert done.counts["withheld"] == 3
    assert_sums(done.counts)


SOURCE = ["messages", "label"]


@pytest.mark.parametrize(
    ("make", "columns", "want"),
    [
        (write_decisions, "source", SOURCE),
        (write_decisions, "scores", [*SOURCE, "larf_row_id", "larf_score", "larf_decision"]),
        (write_decisions, "all", [*SOURCE, "larf_row_id", "larf_score", "larf_decision", "larf_index"]),
        (write_selection, "source", SOURCE),
        (write_selection, "all", [*SOURCE, "larf_row_id", "larf_score", "larf_state", "larf_flagged"]),
    ],
)
def test_the_columns_that_are_asked_for_are_published_in_their_order(tmp_path, make, columns, want):
    folder = make(tmp_path / "rows")
    if make is write_decisions:
        kept = Dataset.from_parquet(str(next((folder / "kept").glob("*.parquet"))))
        kept = kept.add_column("larf_original_answer", [HARMFUL] * len(kept))
        rewrite(folder, "kept", kept.add_column("larf_index", list(range(len(kept)))))
    publish(folder, tmp_path / "curated", columns=columns)
    loaded = load_dataset(str(tmp_path / "curated"), split="train")
    assert loaded.column_names == want
    assert loaded["label"][:] == kept_table(folder)["label"].to_pylist()
    assert not any(HARMFUL.encode() in path.read_bytes() for path in (tmp_path / "curated").rglob("*.*"))


def test_the_split_keeps_its_name(hub, tmp_path):
    selection = selection_record(12, 5, scored=scored_record(12, source={"dataset": "saved", "split": "validation"}))
    folder = write_decisions(tmp_path / "decisions", selection=selection)
    send(hub, folder)
    publish(folder, tmp_path / "curated")
    for loaded in (load_dataset(REPO, token=hub.token), load_dataset(str(tmp_path / "curated"))):
        assert list(loaded) == ["validation"]
        assert loaded["validation"].to_list() == kept_table(folder).to_pylist()


@pytest.mark.parametrize("split", ["../x", "a b", "", 7, None])
def test_what_is_no_name_of_a_split_is_published_as_train(tmp_path, split):
    selection = selection_record(12, 5, scored=scored_record(12, source={"dataset": "saved", "split": split}))
    publish(write_decisions(tmp_path / "decisions", selection=selection), tmp_path / "curated")
    assert (tmp_path / "curated" / SHARD).is_file()


def test_shards_have_pages_that_the_hub_can_deduplicate_and_search(tmp_path):
    publish(write_selection(tmp_path / "rows"), tmp_path / "curated")
    column = pq.read_metadata(tmp_path / "curated" / SHARD).row_group(0).column(0)
    assert column.has_column_index
    assert column.has_offset_index


@pytest.mark.parametrize("to", ["curated", "a/b/c", "org/a b"])
def test_a_destination_that_is_neither_is_wrong_usage(decisions, to):
    refused = CliRunner().invoke(publish_command, [str(decisions), "--to", to])
    assert refused.exit_code == 2
    assert "wanted org/name, or a folder beginning with ./ or /" in refused.output


def test_a_later_publication_replaces_shards_and_section_and_keeps_the_rest(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 5)
    send(hub, write_decisions(tmp_path / "first"))
    theirs = (
        card(hub)
        .replace("---\n", "---\nlicense: mit\nlanguage: [de]\n", 1)
        .replace("# curated", "# Our data\n\nHand-written.")
    )
    theirs = theirs.replace("tags:\n", "tags:\n- ours\n") + "\nCite us.\n"
    extra = "configs:\n- config_name: raw\n  default: true\n  data_files: raw/*.jsonl\n"
    hub.commit(REPO, {"README.md": theirs.replace("configs:\n", extra), "raw/a.jsonl": "{}\n", "notes.txt": "keep"})
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 100)
    second = write_decisions(tmp_path / "second", rows=8)
    done = send(hub, second)
    held = hub.files(REPO)
    assert held.keys() == {*FILES, "raw/a.jsonl", "notes.txt"}
    assert done.deleted == ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet")
    assert len(titles(hub)) == 4
    text = card(hub)
    assert "# Our data\n\nHand-written." in text
    assert text.endswith(f"{END}\n\nCite us.\n")
    assert "5 of 8 rows" in section(text)
    data = metadata(text)
    assert (data["license"], data["language"], data["tags"]) == ("mit", ["de"], ["ours", "larf-curate", "safety"])
    assert data["configs"][2] == {"config_name": "raw", "data_files": "raw/*.jsonl"}
    assert load_in_a_fresh_process(hub, tmp_path / "loaded.parquet").equals(kept_table(second))


def test_added_columns_reach_the_metadata_of_an_existing_card(hub, decisions):
    Dataset.from_list([{"messages": row(0)["messages"], "label": 0}]).push_to_hub(REPO, token=hub.token)
    send(hub, decisions, replace=True)
    loaded = load_dataset(REPO, split="train", token=hub.token)
    assert loaded.to_list() == kept_table(decisions).to_pylist()


@pytest.mark.parametrize(
    "theirs", ["Just text\r\nin two lines\r\n", "---\r\nlicense: mit\r\n---\r\n# T\r\n", "", "\ufeff# Bom\n"]
)
def test_any_card_keeps_its_text(hub, decisions, theirs):
    hub.create(REPO)
    hub.commit(REPO, {"README.md": theirs.encode()})
    send(hub, decisions)
    text = card(hub)
    body = theirs.removeprefix("\ufeff").split("---\r\n")[-1].strip()
    assert body in text
    assert ("\r\n" in section(text)) == ("\r\n" in theirs)
    assert send(hub, decisions).changed is False


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_card_keeps_metadata_of_its_own_and_comments_in_it(hub, decisions, line_break):
    theirs = {
        "license": "mit",
        "pretty_name": "Ours: a set",
        "extra_gated_prompt": "# Terms\n\nAgree.\n",
        "size_categories": ["n<1K"],
        "own": {"a": [1, None]},
    }
    text = "---\n# See the guide\n" + yaml.safe_dump(theirs, sort_keys=False) + "# and the end\n---\n# Title\n\nBody.\n"
    hub.create(REPO)
    hub.commit(REPO, {"README.md": text.replace("\n", line_break).encode()})
    send(hub, decisions)
    merged = hub.files(REPO)["README.md"].decode()
    data = yaml.safe_load(merged.replace("\r\n", "\n").split("---\n")[1])
    assert {name: data[name] for name in theirs} == theirs
    assert merged.startswith(line_break.join(["---", "# See the guide", "# and the end", "license: mit"]))
    assert f"# Title{line_break * 2}Body.{line_break}" in merged
    assert send(hub, decisions).changed is False


def test_the_same_decisions_again_make_no_commit(hub, decisions):
    first = send(hub, decisions)
    again = send(hub, decisions)
    assert (again.changed, again.commit) == (False, first.commit)
    assert send(hub, decisions, create_pr=True).pr_url is None
    assert len(titles(hub)) == 2


def test_a_raced_commit_is_merged_and_not_lost(hub, decisions):
    send(hub, decisions)
    hub.commit(REPO, {"README.md": card(hub) + "\nOne.\n"})
    reseal(decisions, "decisions.json", merge="any")
    hub.before_next(COMMIT, lambda: hub.commit(REPO, {"README.md": card(hub) + "\nTwo.\n", "new.md": "x"}))
    done = send(hub, decisions)
    assert card(hub).endswith("\nOne.\n\nTwo.\n")
    assert "merge rule any" in section(card(hub))
    assert hub.files(REPO)["new.md"] == b"x"
    assert done.commit == hub.history(REPO)[0].oid


@pytest.mark.parametrize(
    ("match", "how"),
    [
        ("GET /api/datasets", {"status": 503}),
        ("GET /api/datasets", {"drop": True}),
        ("POST /api/repos/create", {"status": 502}),
        ("POST /api/validate-yaml", {"status": 503}),
        (COMMIT, {"status": 503}),
        (COMMIT, {"status": 429, "headers": {"Retry-After": "0"}}),
        (COMMIT, {"drop": True}),
        (COMMIT, {"drop": True, "after": True}),
        (COMMIT, {"status": 504, "after": True}),
    ],
)
def test_goes_on_when_the_hub_stumbles_and_commits_once(hub, decisions, match, how):
    hub.fail_next(times=2 if not how.get("after") else 1, match=match, **how)
    done = send(hub, decisions)
    assert done.changed
    assert done.commit == hub.history(REPO)[0].oid
    assert len(titles(hub)) == 2


def test_goes_on_if_another_process_has_created_the_repository_and_its_answer_has_no_url(hub, decisions, monkeypatch):
    monkeypatch.setattr(hub, "conflict_has_url", False)
    hub.before_next("POST /api/repos/create", lambda: hub.create(REPO))
    assert send(hub, decisions).changed
    assert len(titles(hub)) == 2


def test_a_lost_answer_does_not_open_a_second_pull_request(hub, decisions):
    hub.create(REPO)
    hub.fail_next(match=COMMIT, drop=True, after=True)
    done = send(hub, decisions, create_pr=True)
    assert list(hub.repos["dataset", REPO].pulls) == [1]
    assert done.pr_url == f"{hub.endpoint}/datasets/{REPO}/discussions/1"


def test_a_pull_request_needs_no_right_to_write(hub, decisions):
    hub.create(REPO)
    done = send(hub, decisions, create_pr=True, token=hub.other_token)
    assert done.pr_url.endswith("/discussions/1")
    assert hub.files(REPO, revision="refs/pr/1").keys() == FILES


def test_a_pull_request_leaves_main_alone(hub, decisions):
    hub.create(REPO)
    done = send(hub, decisions, create_pr=True, commit_message="Please look")
    assert hub.files(REPO) == {}
    assert titles(hub, revision="refs/pr/1") == ["Please look", "initial commit"]
    assert done.pr_url.endswith("/discussions/1")


def pulls(hub: LocalHub) -> dict[int, list[str]]:
    """Titles of the commits of each pull request."""
    numbers = hub.repos["dataset", REPO].pulls
    return {number: titles(hub, revision=f"refs/pr/{number}") for number in numbers}


def test_a_second_pull_request_updates_the_first(hub, tmp_path, decisions):
    hub.create(REPO)
    token = hub.other_token  # of a user who may only open pull requests
    first = send(hub, decisions, create_pr=True, token=token)
    assert send(hub, decisions, create_pr=True, token=token).changed is False
    second = write_decisions(tmp_path / "second", rows=8)
    planned = send(hub, second, create_pr=True, token=token, dry_run=True)
    done = send(hub, second, create_pr=True, token=token)
    assert planned.pr_url == done.pr_url == first.pr_url
    assert (planned.changed, done.changed) == (True, True)
    assert pulls(hub) == {1: ["Publish 5 rows with larf-curate", "Publish 9 rows with larf-curate", "initial commit"]}
    held = hub.files(REPO, revision="refs/pr/1")
    assert pq.read_table(io.BytesIO(held[SHARD])).equals(kept_table(second))
    assert hub.files(REPO) == {}


def test_closed_pull_requests_and_those_of_others_are_left_alone(hub, decisions):
    hub.create(REPO)
    for number, about in enumerate(({"status": "closed"}, {"author": "larf"}, {"title": "Fix a typo"}), start=1):
        send(hub, decisions, create_pr=True, token=hub.other_token)
        hub.repos["dataset", REPO].pulls[number] |= about
    done = send(hub, decisions, create_pr=True, token=hub.other_token)
    assert done.pr_url.endswith("/discussions/4")
    assert [len(commits) for commits in pulls(hub).values()] == [2] * 4


def test_the_first_open_pull_request_is_found_on_a_later_page(hub, decisions, tmp_path):
    hub.create(REPO)
    send(hub, decisions, create_pr=True)
    made = hub.repos["dataset", REPO].pulls
    made |= {number: made[1] | {"title": "Other"} for number in range(2, 25)}
    assert send(hub, write_decisions(tmp_path / "b", rows=8), create_pr=True).pr_url.endswith("/discussions/1")


def test_a_merged_pull_request_is_followed_by_a_new_one(hub, tmp_path, decisions):
    hub.create(REPO)
    send(hub, decisions, create_pr=True)
    HfApi(endpoint=hub.endpoint, token=hub.token).merge_pull_request(REPO, 1, repo_type="dataset")
    assert send(hub, decisions, create_pr=True).pr_url is None
    done = send(hub, write_decisions(tmp_path / "second", rows=8), create_pr=True)
    assert done.pr_url.endswith("/discussions/2")


FOREIGN = {
    "data/train-00000-of-00001.parquet": b"rows of somebody",
    "data/train-00001-of-00002.parquet": b"more rows",
    "old.tar": b"t",
    "rows.pkl": b"p",
    "x/rows.h5": b"h",
    "rows.7z": b"7",
    "test.jsonl": b"{}",
}


@pytest.mark.parametrize("on_the_hub", [True, False])
@pytest.mark.parametrize("paths", [(path,) for path in FOREIGN] + [tuple(FOREIGN)])
def test_data_of_others_is_replaced_only_when_asked(hub, tmp_path, decisions, on_the_hub, paths):
    files = {path: FOREIGN[path] for path in paths}
    stay = {"LICENSE.txt": b"l", "notes.txt": b"n", "model.bin": b"m", "figure.png": b"f"}
    target = REPO if on_the_hub else tmp_path / "there"

    def held():
        found = (
            hub.files(REPO)
            if on_the_hub
            else {
                path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()
            }
        )
        return {path: content for path, content in found.items() if path not in ("README.md", "provenance.json")}

    if on_the_hub:
        hub.create(REPO)
        hub.commit(REPO, files | stay)
    else:
        for path, content in (files | stay).items():
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            (target / path).write_bytes(content)
    for dry_run in (True, False):
        with pytest.raises(PublishError, match=rf"{re.escape(sorted(paths)[0])}.*--replace"):
            send(hub, decisions, target, dry_run=dry_run)
    assert held() == files | stay
    planned = send(hub, decisions, target, replace=True, dry_run=True)
    assert held() == files | stay
    assert planned.replaced == tuple(sorted(files))
    assert planned.deleted == tuple(path for path in sorted(files) if path != SHARD)
    assert planned.beside == ("model.bin", "notes.txt")
    done = send(hub, decisions, target, replace=True)
    assert (done.replaced, done.deleted) == (planned.replaced, planned.deleted)
    assert held().keys() == stay.keys() | FILES - {"README.md", "provenance.json"}
    assert send(hub, decisions, target).changed is False


def test_what_somebody_changed_in_our_publication_is_replaced_only_when_asked(hub, tmp_path, decisions):
    send(hub, decisions)
    hub.commit(REPO, {SHARD: b"other rows"})
    second = write_decisions(tmp_path / "second", rows=8)
    with pytest.raises(PublishError, match="--replace"):
        send(hub, second)
    assert send(hub, second, replace=True).replaced == (SHARD,)


def test_a_publication_to_a_folder_that_was_cut_off_goes_on(tmp_path, decisions):
    whole, half = tmp_path / "whole", tmp_path / "half"
    publish(decisions, whole)
    (half / "data").mkdir(parents=True)
    shutil.copy(whole / SHARD, half / SHARD)
    assert publish(decisions, half).replaced == ()


def test_other_splits_are_replaced_when_asked(hub, decisions):
    Dataset.from_list([{"a": 1}]).push_to_hub(REPO, split="test", token=hub.token)
    with pytest.raises(PublishError, match="--replace"):
        send(hub, decisions)
    done = send(hub, decisions, replace=True)
    assert done.replaced == ("data/test-00000-of-00001.parquet",)
    assert list(load_dataset(REPO, token=hub.token)) == ["train"]


@pytest.mark.parametrize("make", [write_decisions, write_selection])
def test_changed_rows_and_records_of_another_run_are_refused(hub, tmp_path, make):
    folder, other = make(tmp_path / "one"), make(tmp_path / "other", rows=13)
    manifest = next(path.name for path in folder.glob("*.json"))
    shard = next((folder / "kept").glob("*.parquet"))
    table = pq.read_table(shard)
    kept = table.to_pylist()
    kept[0]["messages"][1]["content"] = "Something else."
    right = shard.read_bytes()
    pq.write_table(pa.Table.from_pylist(kept, table.schema), shard)
    with pytest.raises(InputError, match="kept/part-.* was changed after it was written"):
        send(hub, folder)
    shard.write_bytes(right)
    (folder / "kept" / "part-99999-of-00001.parquet").write_bytes(right)
    with pytest.raises(InputError, match="part-99999"):
        send(hub, folder)
    (folder / "kept" / "part-99999-of-00001.parquet").unlink()
    record = (folder / manifest).read_text()
    (folder / manifest).write_text((other / manifest).read_text())
    with pytest.raises(InputError, match="was changed after it was written"):
        send(hub, folder)
    values = json.loads(record)
    del values["shards"]
    (folder / manifest).write_text(json.dumps(values))
    with pytest.raises(InputError, match="shards"):
        send(hub, folder)
    assert not hub.repos
    (folder / manifest).write_text(record)
    assert send(hub, folder).changed


def test_decisions_of_another_review_are_refused(hub, tmp_path):
    folder, other = write_decisions(tmp_path / "one"), write_decisions(tmp_path / "other", category="fraud")
    shutil.copy(other / "decisions.parquet", folder)
    with pytest.raises(InputError, match="decisions.parquet was changed after it was written"):
        send(hub, folder)


def test_decisions_that_the_rows_of_a_selection_have_are_not_published(hub, tmp_path):
    folder = write_selection(tmp_path / "selection")
    for path in folder.rglob("*.parquet"):
        rows = Dataset.from_parquet(str(path))
        rows.add_column("larf_decision", ["keep"] * len(rows)).to_parquet(path)
    reseal(folder, "selection.json")
    send(hub, folder)
    assert "larf_decision" not in load_dataset(REPO, split="train", token=hub.token).column_names


def test_commits_to_a_branch_that_exists(hub, decisions):
    repo = hub.create(REPO)
    repo.branches["curated"] = repo.branches["main"]
    send(hub, decisions, branch="curated")
    assert SHARD in hub.files(REPO, revision="curated")
    assert hub.files(REPO) == {}


@pytest.mark.parametrize(("status", "said"), [(503, "not able to answer"), (412, "kept changing")])
def test_gives_up_after_a_few_tries(hub, decisions, status, said):
    hub.fail_next(status, 99, match=COMMIT)
    with pytest.raises(PublishError, match=said):
        send(hub, decisions)
    assert sum(path.count("/commit/") for _, path, _ in hub.requests) == 5
    assert hub.files(REPO) == {}


@pytest.mark.parametrize(
    ("repo", "options", "said"),
    [
        (REPO, {"token": "hf_unknown"}, "hf auth login"),
        ("stranger/x", {}, "write access to stranger"),
        (REPO, {"token": LocalHub.read_token}, "write access to org"),
        ("org/there", {"token": LocalHub.other_token}, "may not write to org/there"),
        ("no-namespace", {}, "wanted org/name"),
        ("org/../x", {}, "wanted org/name"),
        ("org/a b", {}, "wanted org/name"),
        (REPO, {"endpoint": "http://127.0.0.1:9"}, "cannot be reached"),
        (REPO, {"token": None}, "no Hugging Face token"),
        (REPO, {"token": "hf_\u00fc"}, "of ASCII characters"),
        (REPO, {"token": "hf_a b"}, "of ASCII characters"),
    ],
)
def test_a_refusal_is_one_line_with_the_remedy(hub, decisions, repo, options, said):
    hub.create("org/there")
    with pytest.raises(PublishError, match=re.escape(said)) as refused:
        send(hub, decisions, repo, **options)
    assert "\n" not in str(refused.value)
    assert hub.files("org/there") == {}
    assert ("dataset", REPO) not in hub.repos


def test_says_when_offline_mode_is_set(hub, decisions, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="unset HF_HUB_OFFLINE"):
        send(hub, decisions)


def test_the_token_of_the_environment_is_used(hub, decisions, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert publish(decisions, REPO, endpoint=hub.endpoint).changed


def test_the_token_appears_nowhere(hub, tmp_path, caplog, monkeypatch):
    source = {"token": hub.token, "api_key": "argilla.apikey", "note": f"used {hub.token}"}
    selection = selection_record(12, 5, scored=scored_record(12, source=source))
    folder = write_decisions(tmp_path / "decisions", selection=selection)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with caplog.at_level(logging.DEBUG):
        hub.fail_next(match=COMMIT)
        send(hub, folder)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
        shown = CliRunner().invoke(publish_command, [str(folder), "--to", REPO, "--json"])
    hub.fail_next(403, match=COMMIT, headers={"X-Error-Message": f"token {hub.token} is refused"})
    with pytest.raises(PublishError) as refused:
        send(hub, write_decisions(tmp_path / "other", rows=7))
    assert "token (token) is refused" in str(refused.value)
    everything = [*hub.files(REPO).values(), shown.output.encode(), caplog.text.encode(), str(refused.value).encode()]
    assert not any(hub.token.encode() in text or b"argilla.apikey" in text for text in everything)


HOSTILE = (
    f"<script>alert(1)</script> {END} | a | b\n# Title\n| x | y |\r\n---\n```[link](javascript:1) ![i](http://e.vil)"
    "\x00\x1b[31m\u202e\ud800 $$x$$ **b** __c__ &lt; {{ 7*7 }} {% raw %}" + "x" * 100_000
)


def test_hostile_text_stays_text(hub, tmp_path):
    scored = scored_record(12, source={"path": HOSTILE})
    scored = seal(scored | {"profile": scored["profile"] | {"model": HOSTILE, "signal": HOSTILE}})
    selection = selection_record(12, 5, scored=scored, rule={HOSTILE: 0.5})
    safe = HOSTILE.replace("\ud800", "")
    folder = write_decisions(tmp_path / "d", category=safe, selection=selection, merge=HOSTILE)
    send(hub, folder)
    text = card(hub)
    stated = section(text)
    assert not re.search(r"(?<!\\)<(?!!--)|(?<!\\)(?<!!)\[(?!larf-curate\])|[\x00\x1b\u202e]", stated)
    assert "\\<script\\>" in stated
    assert not re.search(r"(?m)^(# |---|```)", stated)
    table = [line for line in stated.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in table)
    assert len(stated) < 6_000
    assert metadata(text)["tags"] == ["larf-curate", "safety"]
    assert send(hub, folder).changed is False
    assert load_dataset(REPO, split="train", token=hub.token).num_rows == 9


def test_hostile_column_names_load_again(hub, tmp_path):
    folder = write_decisions(tmp_path / "d")
    path = next((folder / "kept").glob("*.parquet"))
    names = ["a.b: [x", "'\"\n---\n", "label", *("larf_row_id", "larf_score", "larf_decision")]
    data = Dataset.from_parquet(str(path)).rename_columns({"messages": "q"}).add_column("z", ["\x00"] * 9)
    data = data.rename_columns({"q": names[0], "z": names[1]})
    data.to_parquet(path)
    reseal(folder, "decisions.json")
    send(hub, folder)
    assert load_dataset(REPO, split="train", token=hub.token).to_list() == data.to_list()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a_b __c__ *d*", r"a_b \_\_c\_\_ \*d\*"),
        ("x\n| y |\t<b>", r"x \| y \| \<b\>"),
        ("http://e.vil", r"http\://e.vil"),
        ("\x1b[0m\ud800", "\ufffd\\[0m\ufffd"),
        ("y" * 300, "y" * 199 + "\N{HORIZONTAL ELLIPSIS}"),
    ],
)
def test_inline_text_has_no_markup(text, want):
    assert escape_inline(text) == want


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ("/home/alice/my data/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("C:\\Users\\alice\\rows.jsonl", "rows.jsonl"),
        ("file:///home/alice/rows/", "rows"),
        ("json of /home/alice/rows.jsonl, split train", "json of rows.jsonl, split train"),
        ("https://huggingface.co/datasets/org/name", "https://huggingface.co/datasets/org/name"),
        ("org/name", "org/name"),
        ("and/or 1/2", "and/or 1/2"),
        ({"annotators": ["alice", "bob"], "token": "x", "tokenizer": "t"}, {"annotators": 2, "tokenizer": "t"}),
        ({"/home/alice/a.csv": [1, None, 0.5]}, {"a.csv": [1, None, 0.5]}),
        ("key hf_abcdefghijklmnopqrstuv", "key (removed)"),
        ("xhf_abcdefghijklmnopqrstuv_hf_abcdefghijklmnopqrstuv!", "x(removed)_(removed)!"),
        ("HF_ABCDEFGHIJKLMNOPQRSTUV", "(removed)"),
        ("api_org_abcdefghijklmnopqrstuv", "(removed)"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"),
        ("https://hub.example/a?x=1&token=hf_abcdefghijklmnopqrstuv#b", "https://hub.example/a?x=1&token=(removed)#b"),
        ("https://hub.example/a?X-Amz-Signature=ab12%2F&y=2", "https://hub.example/a?X-Amz-Signature=(removed)&y=2"),
        ("https://user:word@hub.example/a", "https://(removed)@hub.example/a"),
        ("Authorization: Bearer ab.cd-ef", "Authorization: Bearer (removed)"),
        ("{'authorization': 'Basic dXNlcjp3b3Jk'}", "{'authorization': 'Basic (removed)'}"),
        ("sent with bearer ab.cd-ef, then", "sent with bearer (removed), then"),
    ],
)
def test_records_lose_paths_names_and_keys(value, want):
    assert redact(value) == want


def test_a_folder_below_the_target_that_is_a_link_is_refused(decisions, tmp_path):
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "published"
    elsewhere.mkdir()
    target.mkdir()
    (target / "data").symlink_to(elsewhere)
    with pytest.raises(PublishError, match="data is a link to .*elsewhere, wanted a folder: remove the link"):
        publish(decisions, target)
    assert not list(elsewhere.iterdir())
    assert [path.name for path in target.iterdir()] == ["data"]
    (target / "data").unlink()
    (tmp_path / "link").symlink_to(target)  # the target itself may be one: it is what was named
    publish(decisions, tmp_path / "link")
    assert (target / SHARD).is_file()


def rewrite(folder: Path, name: str, rows: list[dict] | Dataset) -> None:
    path = next((folder / name).glob("*.parquet"))
    if not isinstance(rows, Dataset):
        rows = Dataset.from_list(rows, features=Dataset.from_parquet(str(path)).features)
    rows.to_parquet(path)
    record = "decisions.json" if (folder / "decisions.json").exists() else "selection.json"
    reseal(folder, record)


def test_refuses_rows_that_were_changed_after_the_decisions(hub, decisions):
    path = next((decisions / "kept").glob("*.parquet"))
    Dataset.from_parquet(str(path)).select(range(3)).to_parquet(path)
    with pytest.raises(InputError, match="part-00000-of-00001.parquet was changed after it was written: write it"):
        send(hub, decisions)
    assert not hub.repos


def test_refuses_a_folder_in_which_a_removed_row_is_kept(hub, decisions):
    kept = kept_table(decisions).to_pylist()
    rewrite(decisions, "kept", [*kept[:-1], kept[-1] | {"larf_row_id": f"{0:016x}"}])
    with pytest.raises(InputError, match="1 rows nobody decided to keep"):
        send(hub, decisions)
    assert not hub.repos


def test_refuses_a_folder_in_which_a_row_is_missing_or_duplicated(hub, decisions):
    kept = kept_table(decisions).to_pylist()
    rewrite(decisions, "kept", kept[:-1])
    with pytest.raises(InputError, match="holds 11 of the 12 rows"):
        send(hub, decisions)
    rewrite(decisions, "kept", [*kept[:-1], kept[0]])
    with pytest.raises(InputError, match="1 duplicated rows"):
        send(hub, decisions)


@pytest.mark.parametrize("part", ["removed", "withheld"])
def test_refuses_a_folder_in_which_a_duplicate_makes_up_for_a_missing_row(hub, decisions, part):
    rewrite(decisions, "kept", kept_table(decisions).to_pylist()[:-1])
    rows = Dataset.from_parquet(str(next((decisions / part).glob("*.parquet")))).to_list()
    rewrite(decisions, part, [*rows, rows[0]])
    with pytest.raises(InputError, match="1 duplicated rows"):
        send(hub, decisions)
    assert not hub.repos


def test_refuses_a_selection_in_which_a_duplicate_makes_up_for_a_missing_row(hub, tmp_path):
    folder = write_selection(tmp_path / "s")
    rewrite(folder, "kept", kept_table(folder).to_pylist()[:-1])
    rows = Dataset.from_parquet(str(next((folder / "flagged").glob("*.parquet")))).to_list()
    rewrite(folder, "flagged", [*rows, rows[0]])
    with pytest.raises(InputError, match="1 duplicated rows"):
        send(hub, folder)


def test_refuses_what_is_not_a_folder_of_decisions(hub, tmp_path, decisions):
    with pytest.raises(InputError, match="wanted a folder with decisions.json"):
        send(hub, tmp_path)
    (decisions / "decisions.json").write_text('{"kind": "decisions", "version": 3}')
    with pytest.raises(InputError, match="of version 3, wanted version 2"):
        send(hub, decisions)


def test_refuses_when_no_row_is_left(hub, tmp_path):
    folder = write_selection(tmp_path / "s", rows=3)
    with pytest.raises(InputError, match="no row of .* is left"):
        send(hub, folder)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"train.jsonl": "{}\n"}, "train.jsonl"),
        ({"data/validation.csv.gz": b"x"}, "data/validation.csv.gz"),
        ({"README.md": f"---\nconfigs:\n- config_name: default\n  data_files: {OTHER_SPLIT}\n---\n"}, "the split test"),
        ({"README.md": "---\na: [\n---\n"}, "is broken"),
        ({"README.md": "---\n- a\n---\n"}, "is broken"),
        ({"README.md": b"\xff\xfe"}, "not UTF-8"),
    ],
)
def test_refuses_to_publish_beside_what_it_would_spoil(hub, decisions, theirs, said):
    hub.create(REPO)
    hub.commit(REPO, theirs)
    with pytest.raises(PublishError, match=said):
        send(hub, decisions)
    assert len(titles(hub)) == 2


def test_a_dry_run_tells_all_and_writes_nothing(hub, decisions):
    planned = send(hub, decisions, dry_run=True)
    assert not hub.repos
    assert {method for method, _, _ in hub.requests} == {"GET"}
    assert (planned.changed, planned.created, planned.commit) == (True, True, None)
    done = send(hub, decisions)
    assert planned.files == done.files
    assert planned.card == done.card


def test_a_folder_gets_what_the_commit_would_hold(hub, decisions, tmp_path):
    send(hub, decisions)
    folder = tmp_path / "curated"
    (folder / "data").mkdir(parents=True)
    (folder / "data/train-00000-of-00002.parquet").write_bytes(b"old")
    old = {"data/train-00000-of-00002.parquet": {"bytes": 3, "sha256": hashlib.sha256(b"old").hexdigest()}}
    (folder / "provenance.json").write_text(json.dumps({"kind": "publication", "version": 1, "files": old}))
    done = publish(decisions, folder)
    held = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert held == hub.files(REPO)
    assert done.deleted == ("data/train-00000-of-00002.parquet",)
    assert (done.url, done.commit) == (str(folder), None)
    assert publish(decisions, folder).changed is False
    assert load_dataset(str(folder), split="train").to_list() == kept_table(decisions).to_pylist()


@pytest.mark.parametrize("make", [write_decisions, write_selection])
def test_hidden_files_are_not_published(make, tmp_path):
    folder = make(tmp_path / "rows")
    whole = pq.read_table(folder / "kept/part-00000-of-00001.parquet")
    pq.write_table(whole.slice(0, 0), folder / "kept/.h.parquet")
    (folder / "kept/._part-00000-of-00001.parquet").write_bytes(b"not Parquet")
    publish(folder, tmp_path / "curated")
    assert [path.name for path in (tmp_path / "curated/data").iterdir()] == ["train-00000-of-00001.parquet"]
    assert load_dataset(str(tmp_path / "curated"), split="train")["label"][:] == whole["label"].to_pylist()


def test_the_card_shows_plots_that_are_in_the_repository(hub, decisions):
    send(hub, decisions)
    held = hub.files(REPO)
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", section(card(hub)))
    assert [path for _, path in shown] == [*PICTURES]
    assert shown[1][0] == "Bar chart of the flagged rows: 1 kept, 1 edited, 2 removed, 1 withheld"
    for path in PICTURES:
        with Image.open(io.BytesIO(held[path])) as picture:
            assert picture.format == "PNG"
            assert picture.size == (768, 384)


@pytest.mark.parametrize("on_the_hub", [True, False])
def test_pictures_of_others_stay_and_ours_that_others_changed_too(hub, tmp_path, decisions, on_the_hub):
    target = REPO if on_the_hub else tmp_path / "there"
    theirs, path = b"their picture", PICTURES[0]
    if on_the_hub:
        hub.create(REPO)
        hub.commit(REPO, {path: theirs})
    else:
        (target / path).parent.mkdir(parents=True)
        (target / path).write_bytes(theirs)
    done = send(hub, decisions, target)
    assert path in done.beside
    assert path not in [file.path for file in done.files]
    held = hub.files(REPO)[path] if on_the_hub else (target / path).read_bytes()
    assert held == theirs
    second = PICTURES[1]
    if on_the_hub:
        hub.commit(REPO, {second: theirs})
    else:
        (target / second).write_bytes(theirs)
    assert {path, second} <= {*send(hub, write_decisions(tmp_path / "second", rows=8), target).beside}


def test_a_folder_with_other_data_or_a_file_is_refused(decisions, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/rows.jsonl").write_text("{}")
    with pytest.raises(PublishError, match="holds other data"):
        publish(decisions, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="is a file"):
        publish(decisions, tmp_path / "file")
    with pytest.raises(InputError, match="no branches"):
        publish(decisions, "./x", create_pr=True)


def test_the_command_publishes_and_says_what(hub, decisions, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    dry = CliRunner().invoke(publish_command, [str(decisions), "--to", REPO, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    for text in (
        SHARD,
        "provenance.json",
        "withheld",
        "dataset_info:",
        "nothing written",
        f"{hub.endpoint}/datasets/{REPO}",
    ):
        assert text in dry.output
    assert not hub.repos
    done = CliRunner().invoke(publish_command, [str(decisions), "--to", REPO, "--json"])
    result = json.loads(done.stdout)
    assert (result["commit"], result["counts"]["published"]) == (hub.history(REPO)[0].oid, 9)
    again = CliRunner().invoke(publish_command, [str(decisions), "--to", REPO])
    assert "nothing to do" in again.output


def test_the_command_warns_of_a_repository_that_is_already_public(hub, decisions, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.create(REPO, private=False)
    assert "is already public" in CliRunner().invoke(publish_command, [str(decisions), "--to", REPO]).output
