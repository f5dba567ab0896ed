"""The local Hub, seen through the real client: it gives what was put in, and refuses what huggingface.co refuses."""

import hashlib
import json
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash

from tests.hub_fixture import LocalHub

PARQUET = "data/train-00000-of-00001.parquet"
BYTES = b"PAR1 not really, but large files are not looked into PAR1"


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


def put(api: HfApi, repo: str, files: dict[str, bytes], **options: object) -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(repo, operations, commit_message="put", repo_type="dataset", **options).oid


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_knows_its_users_and_no_others(hub, api):
    assert api.whoami()["name"] == "larf"
    with pytest.raises(HfHubHTTPError) as refused:
        HfApi(endpoint=hub.endpoint, token="hf_unknown").whoami()
    assert status(refused) == 401


def test_a_repository_is_created_once(api):
    assert api.create_repo("org/a", repo_type="dataset").repo_id == "org/a"
    assert api.create_repo("org/a", repo_type="dataset", exist_ok=True).repo_id == "org/a"
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_repo("org/a", repo_type="dataset")
    assert status(refused) == 409


def test_gives_back_the_bytes_of_small_and_large_files_with_their_ids(hub, api, tmp_path):
    hub.create("org/a", private=True)
    oid = put(api, "org/a", {"README.md": b"---\ntags: [x]\n---\n\xc3\xa9\n", PARQUET: BYTES})
    folder = Path(snapshot_download("org/a", repo_type="dataset", token=hub.token, local_dir=tmp_path))
    assert (folder / PARQUET).read_bytes() == BYTES
    assert (folder / "README.md").read_bytes() == b"---\ntags: [x]\n---\n\xc3\xa9\n"
    info = api.dataset_info("org/a", files_metadata=True)
    files = {file.rfilename: file for file in info.siblings}
    assert info.sha == oid
    assert info.card_data["tags"] == ["x"]
    assert files["README.md"].blob_id == git_hash((folder / "README.md").read_bytes())
    assert files[PARQUET].lfs.sha256 == hashlib.sha256(BYTES).hexdigest()


def test_serves_models_by_branch_tag_and_commit(hub, api):
    hub.create("org/model", kind="model")
    first = hub.commit("org/model", {"config.json": "{}"}, kind="model")
    api.create_tag("org/model", tag="v1")
    hub.commit("org/model", {"config.json": '{"new": 1}'}, kind="model")

    def read(revision: str) -> str:
        return Path(hf_hub_download("org/model", "config.json", revision=revision)).read_text()

    assert [read(revision) for revision in ("main", "v1", first)] == ['{"new": 1}', "{}", "{}"]


def test_datasets_pushes_and_loads_by_itself(hub):
    rows = Dataset.from_dict({"a": list(range(10)), "b": [f"text {i}" for i in range(10)]})
    rows.push_to_hub("org/pushed", token=hub.token, private=True, num_shards=2)
    loaded = load_dataset("org/pushed", split="train", token=hub.token)
    assert loaded.to_list() == rows.to_list()


def test_hides_private_repositories_from_others(hub, api):
    hub.create("org/secret", private=True)
    assert api.dataset_info("org/secret").private
    for token, code in ((False, 401), (hub.other_token, 404)):
        with pytest.raises(RepositoryNotFoundError) as refused:
            HfApi(endpoint=hub.endpoint, token=token).dataset_info("org/secret")
        assert status(refused) == code
        with pytest.raises(RepositoryNotFoundError):
            HfApi(endpoint=hub.endpoint, token=token).dataset_info("org/nothing-there")
    api.update_repo_settings("org/secret", repo_type="dataset", private=False)
    assert not HfApi(endpoint=hub.endpoint, token=False).dataset_info("org/secret").private


def test_refuses_to_write_without_the_right(hub):
    hub.create("org/a")
    for token, code in ((False, 401), (hub.read_token, 403), (hub.other_token, 403)):
        other = HfApi(endpoint=hub.endpoint, token=token)
        with pytest.raises(HfHubHTTPError) as refused:
            put(other, "org/a", {"x.txt": b"x"})
        assert status(refused) == code
        with pytest.raises(HfHubHTTPError) as refused:
            other.create_repo("org/b", repo_type="dataset")
        assert status(refused) == code
    assert hub.files("org/a") == {}


def test_names_what_is_not_there(hub, api):
    hub.create("org/a")
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info("org/a", revision="nope")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("org/a", "nope.txt", repo_type="dataset")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("org/a", "nope", repo_type="dataset"))
    with pytest.raises(EntryNotFoundError):
        api.create_commit("org/a", [CommitOperationDelete("nope")], commit_message="x", repo_type="dataset")


def test_refuses_a_stale_parent_and_changes_nothing(hub, api):
    hub.create("org/a")
    parent = api.dataset_info("org/a").sha
    put(api, "org/a", {"x.txt": b"1"}, parent_commit=parent)
    with pytest.raises(HfHubHTTPError) as refused:
        put(api, "org/a", {"x.txt": b"2"}, parent_commit=parent)
    assert status(refused) == 412
    assert hub.files("org/a") == {"x.txt": b"1"}


def test_a_commit_is_all_or_nothing(hub, api):
    hub.create("org/a")
    operations = [CommitOperationAdd("x.txt", b"1"), CommitOperationDelete("nope")]
    with pytest.raises(EntryNotFoundError):
        api.create_commit("org/a", operations, commit_message="x", repo_type="dataset")
    assert hub.files("org/a") == {}


def test_refuses_large_files_whose_bytes_are_not_the_announced_ones(hub):
    hub.create("org/a")
    oid = hashlib.sha256(BYTES).hexdigest()
    headers = {"Authorization": f"Bearer {hub.token}", "Content-Type": "application/json"}
    body = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": len(BYTES)}]}).encode()
    batch = urllib.request.Request(f"{hub.endpoint}/datasets/org/a.git/info/lfs/objects/batch", body, headers)
    with urllib.request.urlopen(batch) as answer:
        address = json.load(answer)["objects"][0]["actions"]["upload"]["href"]
    for wrong in (BYTES[:-1], BYTES[:-1] + b"x"):
        with pytest.raises(HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address, wrong, method="PUT"))
        assert refused.value.code == 422
        refused.value.close()
    assert hub.repos["dataset", "org/a"].large == {}


def test_refuses_a_commit_of_a_large_file_that_was_not_uploaded(hub, api):
    hub.create("org/a")
    addition = CommitOperationAdd(PARQUET, BYTES)
    addition._upload_mode, addition._should_ignore, addition._is_uploaded = "lfs", False, True
    with pytest.raises(HfHubHTTPError) as refused:
        api.create_commit("org/a", [addition], commit_message="x", repo_type="dataset")
    assert status(refused) == 422


def test_refuses_a_card_with_broken_metadata(hub, api):
    hub.create("org/a")
    with pytest.raises(ValueError, match="Invalid metadata in README.md"):
        put(api, "org/a", {"README.md": b"---\ntags: [unclosed\n---\n"})


def test_lists_a_large_tree_page_by_page(hub, api):
    hub.create("org/a")
    hub.commit("org/a", {f"folder/{i}/file.txt": str(i) for i in range(7)})
    hub.page_size = 3
    paths = [entry.path for entry in api.list_repo_tree("org/a", repo_type="dataset", recursive=True)]
    assert [path for path in paths if path.endswith("file.txt")] == [f"folder/{i}/file.txt" for i in range(7)]
    assert len(paths) == 1 + 1 + 7 + 7
    found = api.get_paths_info("org/a", ["folder/3", "folder/3/file.txt", "nope"], repo_type="dataset")
    assert [entry.path for entry in found] == ["folder/3", "folder/3/file.txt"]


def test_serves_ranges(hub):
    hub.create("org/a")
    hub.commit("org/a", {PARQUET: BYTES})
    with HfFileSystem(endpoint=hub.endpoint, token=hub.token).open(f"datasets/org/a/{PARQUET}", block_size=8) as file:
        file.seek(9)
        assert file.read(10) == BYTES[9:19]


def test_pull_requests_open_on_the_side_and_merge(hub, api):
    hub.create("org/a")
    operation = [CommitOperationAdd("x.txt", b"1")]
    info = api.create_commit("org/a", operation, commit_message="add x", repo_type="dataset", create_pr=True)
    assert (info.pr_num, info.pr_revision) == (1, "refs/pr/1")
    assert hub.files("org/a") == {}
    assert hub.files("org/a", revision="refs/pr/1") == {"x.txt": b"1"}
    refs = api.list_repo_refs("org/a", repo_type="dataset", include_pull_requests=True)
    assert [ref.target_commit for ref in refs.pull_requests] == [info.oid]
    assert [d.title for d in api.get_repo_discussions("org/a", repo_type="dataset")] == ["add x"]
    api.merge_pull_request("org/a", 1, repo_type="dataset")
    assert hub.files("org/a") == {"x.txt": b"1"}


def test_fails_as_planned_and_then_no_more(hub, api):
    hub.create("org/a")
    hub.fail_next(503, 2, match="GET /api/datasets")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError) as refused:
            api.dataset_info("org/a")
        assert status(refused) == 503
    assert api.dataset_info("org/a").id == "org/a"
    hub.fail_next(match="commit/main", drop=True, after=True)
    with pytest.raises(Exception, match="disconnected"):
        put(api, "org/a", {"x.txt": b"1"})
    assert hub.files("org/a") == {"x.txt": b"1"}


def test_history_is_kept(hub, api):
    hub.create("org/a")
    first = put(api, "org/a", {"x.txt": b"1"})
    put(api, "org/a", {"x.txt": b"2"})
    assert [commit.title for commit in api.list_repo_commits("org/a", repo_type="dataset")][:2] == ["put", "put"]
    assert hub.files("org/a", revision=first) == {"x.txt": b"1"}
    api.create_branch("org/a", branch="side", revision=first, repo_type="dataset")
    put(api, "org/a", {"y.txt": b"3"}, revision="side")
    assert hub.files("org/a", revision="side") == {"x.txt": b"1", "y.txt": b"3"}
    api.delete_repo("org/a", repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/a")
