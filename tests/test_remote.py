"""Files by URL: listed once, downloaded once per version, and never with credentials in what is recorded or shown."""

import json
import os
import tempfile

import fsspec
import pytest
from click.testing import CliRunner
from datasets import Dataset

from larf_curate import remote
from larf_curate.cli import main
from larf_curate.data.prompts import load_prompts
from larf_curate.data.references import ReferenceSet
from larf_curate.data.sources import open_source
from larf_curate.errors import InputError, MissingExtraError
from larf_curate.manifests import SELECTION
from larf_curate.publish import publish
from larf_curate.remote import is_within, local_copy, public_name, uploaded, with_urls
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.selection import Selection, select
from tests.fixtures.decisions_folder import write_decisions
from tests.fixtures.scored_folder import digest_of, write_scored


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "home"))


@pytest.fixture(params=["memory", "s3"])
def store(request):
    """A file system, and the URL of a place in it."""
    name = f"{request.param}_store" if request.param == "memory" else request.param
    return request.getfixturevalue(name), f"{request.param}://bucket"


def rows(count: int, first: int = 0) -> bytes:
    return b"".join(
        json.dumps({"prompt": f"q{i}", "response": f"a{i}"}).encode() + b"\n" for i in range(first, first + count)
    )


def content(name) -> list[str]:
    return [row["prompt"] for piece in open_source(name).pieces for row in piece.rows]


def scored_rows(count: int = 6) -> Dataset:
    values = {"prompt": [f"q{i}" for i in range(count)], "response": ["a"] * count, "larf_status": ["ok"] * count}
    return Dataset.from_dict({**values, "larf_score": [float(i) for i in range(count)]})


def put(files, folder, url: str) -> str:
    """Upload a folder as it is."""
    for path in folder.rglob("*"):
        if path.is_file():
            files.put_file(str(path), f"{url}/{path.relative_to(folder).as_posix()}")
    return url


def count_calls(monkeypatch, files, *names: str) -> list[str]:
    calls: list[str] = []
    originals = {name: getattr(files, name) for name in names}
    for name in names:

        def counted(*args, _name=name, **kwargs):
            calls.append(_name)
            return originals[_name](*args, **kwargs)

        monkeypatch.setattr(files, name, counted)
    return calls


@pytest.mark.parametrize("name", ["data/a.jsonl", "data", "data/*.jsonl", "data/?.jsonl"])
def test_a_file_a_folder_and_a_glob_are_read_as_those_of_this_machine(store, tmp_path, name, monkeypatch):
    files, url = store
    for part, count, first in (("a", 3, 0), ("b", 2, 3)):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / f"data/{part}.jsonl").write_bytes(rows(count, first))
    put(files, tmp_path / "data", f"{url}/data")
    ours, theirs = open_source(str(tmp_path / name)), open_source(f"{url}/{name}")
    assert [piece.name for piece in theirs.pieces] == [piece.name for piece in ours.pieces]
    assert [piece.rows[:] for piece in theirs.pieces] == [piece.rows[:] for piece in ours.pieces]
    assert theirs.description == {**ours.description, "dataset": f"{url}/{name}"}


def test_only_what_has_changed_is_downloaded_again_after_one_listing(store, monkeypatch):
    files, url = store
    files.pipe_file(f"{url}/d/a.jsonl", rows(2))
    files.pipe_file(f"{url}/d/b.jsonl", rows(2, 2))
    assert content(f"{url}/d") == ["q0", "q1", "q2", "q3"]
    got, original = [], files.get

    def get(paths, *args, **kwargs):
        got.extend(str(path).rpartition("/")[2] for path in paths)
        return original(paths, *args, **kwargs)

    monkeypatch.setattr(files, "get", get)
    listed = count_calls(monkeypatch, files, "find", "info", "ls")
    assert content(f"{url}/d") == ["q0", "q1", "q2", "q3"]
    assert (got, listed.count("find")) == ([], 1)
    files.pipe_file(f"{url}/d/b.jsonl", rows(2, 7))  # of the same size
    assert content(f"{url}/d") == ["q0", "q1", "q7", "q8"]
    assert got == ["b.jsonl"]
    files.rm_file(f"{url}/d/a.jsonl")
    assert content(f"{url}/d") == ["q7", "q8"]


def test_what_another_machine_has_written_is_seen(s3):
    s3.pipe_file("s3://bucket/d/a.jsonl", rows(1))
    assert content("s3://bucket/d") == ["q0"]
    other = fsspec.filesystem("s3", skip_instance_cache=True)
    other.pipe_file("s3://bucket/d/b.jsonl", rows(1, 1))
    assert content("s3://bucket/d") == ["q0", "q1"]


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_the_description_does_not_depend_on_the_cache(store, tmp_path, monkeypatch):
    files, url = store
    files.pipe_file(f"{url}/d/a.jsonl", rows(2))
    files.pipe_file(f"{url}/e/a.jsonl", rows(2, 2))
    both = [f"{url}/d", f"{url}/e"]
    first = open_source(both)
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "another" / "home"))
    second = open_source(both)
    assert first.description == second.description
    assert [piece.name for piece in first.pieces] == [piece.name for piece in second.pieces]


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_part_of_a_selection_is_verified_like_one_of_this_machine(store, tmp_path):
    files, url = store
    select(scored_rows(), top_k=2).save(tmp_path / "sel")
    put(files, tmp_path / "sel", f"{url}/sel")
    assert len(content(f"{url}/sel/kept")) == 4
    [shard] = files.glob(f"{url}/sel/kept/*.parquet")
    files.pipe_file(shard, files.cat_file(shard).replace(b"q0", b"q9"))
    with pytest.raises(InputError, match="was changed after it was written"):
        open_source(f"{url}/sel/kept")
    with pytest.raises(InputError, match="rows that were kept and others that were not"):
        open_source(f"{url}/sel")


def test_select_from_a_store_is_that_from_a_folder(store, tmp_path):
    files, url = store
    data = scored_rows()
    folder = write_scored(tmp_path / "scored", data, pieces=2, scores=digest_of(data["larf_score"]))
    put(files, folder, f"{url}/scored")
    for scored, out in ((str(folder), str(tmp_path / "sel")), (f"{url}/scored", f"{url}/sel")):
        result = CliRunner().invoke(main, ["select", scored, "--top-k", "2", "-o", out])
        assert result.exit_code == 0, result.output
    names = {path.relative_to(tmp_path / "sel").as_posix() for path in (tmp_path / "sel").rglob("*") if path.is_file()}
    root = files._strip_protocol(f"{url}/sel")
    assert {name[len(root) + 1 :] for name in files.find(root)} == names
    assert all(files.cat_file(f"{url}/sel/{name}") == (tmp_path / "sel" / name).read_bytes() for name in names)
    assert Selection.load(f"{url}/sel").reasons == Selection.load(tmp_path / "sel").reasons


def test_a_selection_in_a_store_is_replaced_and_nothing_else(store, monkeypatch):
    from larf_curate.data import tables

    files, url = store
    monkeypatch.setattr(tables, "ROWS_PER_SHARD", 2)
    select(scored_rows(), top_k=2).save(f"{url}/sel")
    files.pipe_file(f"{url}/sel/x.parquet", b"mine")
    files.pipe_file(f"{url}/sel/kept/notes.txt", b"mine")
    select(scored_rows(4), top_k=2).save(f"{url}/sel")
    root = files._strip_protocol(f"{url}/sel")
    part = "part-00000-of-00001.parquet"
    found = {name[len(root) + 1 :] for name in files.find(root)}
    assert found == {SELECTION.file, f"kept/{part}", f"flagged/{part}", "x.parquet", "kept/notes.txt"}
    assert files.cat_file(f"{url}/sel/x.parquet") == b"mine"
    files.pipe_file(f"{url}/sel/kept/mine.parquet", b"mine")
    with pytest.raises(InputError, match=f"{url}/sel/kept/mine.parquet is not of a selection"):
        select(scored_rows(), top_k=1).save(f"{url}/sel")
    assert files.cat_file(f"{url}/sel/kept/mine.parquet") == b"mine"


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_selection_whose_upload_ended_early_is_not_read_and_can_be_replaced(store, monkeypatch):
    files, url = store
    select(scored_rows(), top_k=2).save(f"{url}/sel")
    original, left = files.put, [1]

    def put_some(*args, **kwargs):
        if not left:
            raise OSError("no space left")
        left.pop()
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(files, "put", put_some)
        with pytest.raises(OSError, match=f"cannot write {url}/sel .no space left"):
            select(scored_rows(4), top_k=1).save(f"{url}/sel")
    with pytest.raises(InputError, match="is not there"):
        Selection.load(f"{url}/sel")
    with pytest.raises(InputError, match="was not written completely"):
        open_source(f"{url}/sel/kept")
    select(scored_rows(4), top_k=1).save(f"{url}/sel")
    assert len(Selection.load(f"{url}/sel").flagged) == 1
    root = files._strip_protocol(f"{url}/sel")
    assert len(files.find(root)) == 3


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_damaged_object_is_found(store, tmp_path):
    files, url = store
    data = scored_rows()
    put(files, write_scored(tmp_path / "scored", data, scores=digest_of(data["larf_score"])), f"{url}/scored")
    assert len(Scored.load(f"{url}/scored").rows) == 6
    [shard] = files.glob(f"{url}/scored/*.parquet")
    files.pipe_file(shard, files.cat_file(shard).replace(b"q0", b"q9"))
    with pytest.raises(InputError, match="was changed after it was written: score again"):
        Scored.load(f"{url}/scored")
    result = CliRunner().invoke(main, ["select", f"{url}/scored", "--top-k", "1", "-o", f"{url}/sel"])
    assert result.exit_code == 2
    assert f"{url}/scored/part-00000.parquet was changed" in result.output


@pytest.mark.parametrize("name", ["a.jsonl", "", "*.jsonl"])
def test_files_of_the_hub_are_read(hub, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.hf_file_system.HfFileSystem.cachable", False)  # one of this server
    hub.create("org/data")
    hub.commit("org/data", {"a.jsonl": rows(2)})
    url = "hf://datasets/org/data"
    assert content(f"{url}/{name}".rstrip("/")) == ["q0", "q1"]
    hub.commit("org/data", {"a.jsonl": rows(2, 5)})
    assert content(f"{url}/{name}".rstrip("/")) == ["q5", "q6"]


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_references_and_prompts_are_read(store):
    files, url = store
    files.pipe_file(f"{url}/refs.jsonl", b'{"prompt": "p", "unsafe": "u", "safe": "s"}\n')
    files.pipe_file(f"{url}/list.json", b'["one", "two"]')
    assert ReferenceSet.load(f"{url}/refs.jsonl").source == f"{url}/refs.jsonl"
    assert load_prompts(f"{url}/list.json") == ["one", "two"]


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_report_is_written_to_a_store(store, tmp_path):
    files, url = store
    data = scored_rows()
    folder = write_scored(tmp_path / "scored", data, scores=digest_of(data["larf_score"]))
    put(files, folder, f"{url}/scored")
    for scored, out in ((str(folder), str(tmp_path / "r.html")), (f"{url}/scored", f"{url}/r.html")):
        result = CliRunner().invoke(main, ["report", scored, "-o", out])
        assert result.exit_code == 0, result.output
    assert files.cat_file(f"{url}/r.html") == (tmp_path / "r.html").read_bytes()


def test_what_is_published_from_a_store_is_what_is_published_from_a_folder(memory_store, tmp_path):
    folder = write_decisions(tmp_path / "decisions")
    put(memory_store, folder, "memory://bucket/decisions")
    for decisions, target in ((folder, tmp_path / "ours"), ("memory://bucket/decisions", tmp_path / "theirs")):
        assert publish(decisions, target).changed
    ours, theirs = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "ours", tmp_path / "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name.suffix == ".parquet")


@pytest.mark.parametrize("name", ["../x.jsonl", "a/../../x.jsonl", "a\\x.jsonl"])
def test_names_outside_of_a_folder_are_refused(memory_store, monkeypatch, name):
    found = {f"/d/{name}": {"name": f"/d/{name}", "type": "file", "size": 1}}
    monkeypatch.setattr(memory_store, "find", lambda path, detail: found)
    with pytest.raises(InputError, match="which no file can be called"):
        local_copy("memory://d")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("s3://absent-bucket/d", InputError, "there is nothing at s3://absent-bucket/d: check the address"),
        ("s3://bucket/absent", InputError, "there is nothing at s3://bucket/absent: check the address"),
        ("foo://x/y", InputError, "cannot use foo://x/y"),
        ("gs://b/x", MissingExtraError, r'pip install "larf-curate\[gcs\]"'),
        ("zip://a::s3://b/x.zip", InputError, "wanted a URL of one store"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_line(s3, url, error, message):
    if error is MissingExtraError:
        pytest.importorskip("s3fs")
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("gcsfs is installed")
    with pytest.raises(error, match=message) as raised:
        local_copy(url)
    assert "\n" not in str(raised.value)


def test_a_library_of_a_protocol_that_is_not_installed_is_named_with_what_to_do(monkeypatch):
    def absent(url):
        raise ImportError('HTTPFileSystem requires "requests" and "aiohttp" to be installed')

    monkeypatch.setattr(fsspec, "url_to_fs", absent)
    message = r'"aiohttp" to be installed\): install it with pip, or copy https://host/a.jsonl to this machine$'
    with pytest.raises(InputError, match=message):
        local_copy("https://host/a.jsonl")


class DeniedStore(fsspec.get_filesystem_class("memory")):
    """A store that may neither be read nor written."""

    protocol = "denied"
    store: dict = {}
    pseudo_dirs = [""]

    def find(self, path, *args, **kwargs):
        raise PermissionError("Access Denied: https://k:top-secret@host/?X-Signature=top-secret")


@pytest.fixture
def _denied(monkeypatch):
    fsspec.register_implementation("denied", DeniedStore, clobber=True)
    monkeypatch.setattr(remote, "WRITABLE", (*remote.WRITABLE, "denied"))


@pytest.mark.usefixtures("_denied")
def test_no_right_to_read_or_write_is_one_line_without_credentials():
    with pytest.raises(InputError, match="may not read denied://b/x .Access Denied.*check the credentials") as reading:
        local_copy("denied://k:top/secret@b/x")
    with (
        pytest.raises(OSError, match="may not write denied://b/x .*check the credentials and their rights") as writing,
        uploaded("denied://b/x"),
    ):
        pass
    for raised in (reading, writing):
        assert "secret" not in str(raised.value)
        assert "\n" not in str(raised.value)
    result = CliRunner().invoke(main, ["select", "denied://k:top/secret@b/x", "--top-k", "1", "-o", "memory://out"])
    assert (result.exit_code, "secret" in result.output) == (2, False)


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("s3://bucket/a@b/c?.jsonl", "s3://bucket/a@b/c?.jsonl"),
        ("s3://key:se/cr@et@bucket/x", "s3://bucket/x"),
        ("hf://datasets/org/name@main/x", "hf://datasets/org/name@main/x"),
        ("sftp://user@host/x@y", "sftp://host/x@y"),
        ("https://user:secret@host/x.jsonl?token=secret", "https://host/x.jsonl"),
        ("org/name", "org/name"),
        ("./a:b@c", "./a:b@c"),
    ],
)
def test_recorded_names_have_no_credentials(name, public):
    assert public_name(name) == public


def test_credentials_of_a_url_are_not_recorded(memory_store, tmp_path):
    memory_store.pipe_file("/top-secret@bucket/d.jsonl", rows(2))
    source = open_source("memory://top-secret@bucket/d.jsonl")
    assert source.description["dataset"] == "memory://bucket/d.jsonl"
    recorded = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert recorded
    assert not any(b"secret" in path.read_bytes() or "secret" in str(path) for path in recorded)


@pytest.mark.parametrize(
    "arguments",
    [
        ["layers", "org/model", "-o", "s3://bucket/layers"],
        ["train", "data.jsonl", "--model", "m", "-o", "s3://bucket/x"],
        ["evaluate", "m", "-o", "s3://bucket/x"],
        ["demo", "-o", "s3://bucket/x"],
    ],
)
def test_commands_that_write_to_this_machine_only_say_so(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "wanted a path, got s3://bucket/" in result.output
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("url", ["https://host/x", "hf://datasets/org/name", "sftp://host/x"])
def test_results_are_written_only_to_stores_that_show_complete_objects(url):
    with pytest.raises(InputError, match="results cannot be written to"), uploaded(url):
        pass


@pytest.mark.parametrize("url", ["memory://bucket/out/..", "memory://bucket/../out", "memory://bucket/."])
def test_a_url_cannot_lead_to_folders_beside_those_of_its_copy(url, memory_store, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "of-others").write_text("content")
    for use in (lambda: local_copy(url), uploaded(url).__enter__):
        with pytest.raises(InputError, match=r"wanted a URL without '.' and '..', got memory://bucket/"):
            use()
    assert memory_store.find("/") == []


def test_no_folder_named_like_a_store_is_created(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="looks like a URL that became a path"):
        select(scored_rows(), top_k=1).save(Path("s3://bucket/x"))
    assert not os.listdir(tmp_path)


def test_paths_in_messages_become_urls(memory_store):
    memory_store.pipe_file("/bucket/d/a.jsonl", rows(1))
    path = local_copy("memory://bucket/d")
    assert with_urls(f"{path / 'a.jsonl'} is damaged") == "memory://bucket/d/a.jsonl is damaged"


@pytest.mark.parametrize(
    ("name", "folder", "within"),
    [
        ("s3://b/x/y", "s3://b/x", True),
        ("s3://b/x/", "s3://b/x", True),
        ("s3://b/xy", "s3://b/x", False),
        ("x", "s3://b/x", False),
    ],
)
def test_urls_within_folders(name, folder, within):
    assert is_within(name, folder) == within
