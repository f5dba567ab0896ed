"""Runs whose folder is in an object store: equal to those of this machine, whatever happens to their processes."""

import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.data import sources
from larf_curate.data.sources import open_source
from larf_curate.errors import InputError, ScoringError
from larf_curate.files import cache_home
from larf_curate.scoring import run_store, shard
from larf_curate.scoring.folder import Scored
from larf_curate.scoring.manifest import guard_statuses
from larf_curate.scoring.reasons import first_reasons
from larf_curate.scoring.run import run_with, score_share, score_source
from larf_curate.scoring.run_store import run_folder
from larf_curate.scoring.scorer import LarfScorer
from larf_curate.scoring.shard import ShardScorer
from larf_curate.verification import without_verification
from tests.fixtures.deadly import DeadlyGuard
from tests.fixtures.fresh_process import CONTEXT, start
from tests.fixtures.long import at_length
from tests.fixtures.pieces import PER_PIECE, small_profile, ten_pieces
from tests.scoring.test_shares import check_equal

pytestmark = pytest.mark.usefixtures("own_caches")


@pytest.fixture(scope="module")
def profile(tiny_llama):
    return small_profile(tiny_llama)


@pytest.fixture
def scorer(profile):
    return LarfScorer(profile, keep_states=True, device="cpu")


@pytest.fixture
def data(tmp_path, monkeypatch):
    return ten_pieces(tmp_path, monkeypatch)


@pytest.fixture(params=["memory", "s3"])
def store(request):
    """A file system, and the URL of a folder in it."""
    name = "memory_store" if request.param == "memory" else "s3"
    return request.getfixturevalue(name), f"{request.param}://bucket/out"


def names(files, url: str) -> set[str]:
    root = files._strip_protocol(url)
    files.invalidate_cache()
    return {path[len(root) + 1 :] for path in files.find(root)}


def download(files, url: str, folder):
    folder.mkdir()
    for name in names(files, url):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files.cat_file(f"{url}/{name}"))
    return folder


def check_is_plain(files, url, data, scorer, tmp_path, **options) -> None:
    """The run in the store has the files of one on this machine, and nothing else."""
    score_source(open_source(str(data)), scorer, tmp_path / "plain", **options)
    check_equal(download(files, url, tmp_path / "downloaded"), tmp_path / "plain")


def fail_at(monkeypatch, number: int, error: BaseException) -> None:
    """Raise an error in place of placing a shard, the ``number``-th time."""
    left, original = [number], ShardScorer._place

    def place(self, *args):
        left[0] -= 1
        if left[0] == 0:
            raise error
        return original(self, *args)

    monkeypatch.setattr(ShardScorer, "_place", place)


def test_a_run_in_a_store_is_that_in_a_folder(store, data, scorer, tmp_path):
    files, url = store
    manifest = score_source(open_source(str(data)), scorer, url)
    check_is_plain(files, url, data, scorer, tmp_path)
    assert manifest["rows"] == len(Scored.load(url).rows) == 190
    assert first_reasons(open_source(str(data)), url, scorer) == []
    with pytest.raises(InputError, match="is finished: continue with larf-curate select"):
        score_source(open_source(str(data)), scorer, url)


def test_an_interrupted_run_is_continued_with_a_handful_of_requests(store, data, scorer, tmp_path, monkeypatch):
    files, url = store
    with monkeypatch.context() as patch:
        fail_at(patch, 9, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            score_source(open_source(str(data)), scorer, url)
    there = {name for name in names(files, url) if name.endswith(".parquet")}
    assert len(there) == 8
    with pytest.raises(InputError, match="has an unfinished run: continue it with --resume"):
        score_source(open_source(str(data)), scorer, url)
    with pytest.raises(InputError, match="is not finished: continue with larf-curate score --resume"):
        Scored.load(url)
    # Another machine: nothing of the run is in its cache.
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "another"))
    asked: list[str] = []
    for name in ("find", "info", "cat_file", "put_file", "pipe_file"):

        def counted(*args, _name=name, _original=getattr(files, name), **kwargs):  # noqa: B008
            asked.append(_name)
            return _original(*args, **kwargs)

        monkeypatch.setattr(files, name, counted)
    scored: list[str] = []
    original = ShardScorer.score

    def score(self, piece, *args, **options):
        scored.append(f"{piece.name}.parquet")
        before = len(asked)
        original(self, piece, *args, **options)
        del asked[before:]  # of this shard

    monkeypatch.setattr(ShardScorer, "score", score)
    score_source(open_source(str(data)), scorer, url, resume=True)
    assert not there & set(scored)
    assert len(scored) == 2
    # Only the two columns that the manifest counts are asked of each shard, with at most one look at each.
    assert asked.count("info") <= 2 * len(there | set(scored))
    assert len([name for name in asked if name != "info"]) < 20
    monkeypatch.undo()
    monkeypatch.setattr(sources, "ROWS_PER_PIECE", PER_PIECE)
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "third"))
    check_is_plain(files, url, data, scorer, tmp_path)


def test_shares_of_two_machines_give_the_plain_run(store, data, scorer, tmp_path, monkeypatch):
    files, url = store
    for index in (1, 0):
        monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / f"machine-{index}"))
        status = score_share(open_source(str(data)), scorer, url, index=index, count=2)
        assert sum(status.values()) == 95
    assert "manifest.json" not in names(files, url)
    score_source(open_source(str(data)), scorer, url, resume=True)
    check_is_plain(files, url, data, scorer, tmp_path)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_the_first_shard_of_two_that_score_the_same_rows_is_kept(store, data, scorer, monkeypatch, caplog):
    files, url = store
    source = open_source(str(data)).share(0, 10)
    score_share(open_source(str(data)), scorer, url, index=0, count=10)
    [shard] = [name for name in names(files, url) if name.endswith(".parquet")]
    first, plan = files.cat_file(f"{url}/{shard}"), files.cat_file(f"{url}/plan.json")
    shards = ShardScorer(folder=run_folder(url), plan=hashlib.sha256(plan).hexdigest(), scorer=scorer)
    temporary = run_folder(url) / "mine"
    table = pq.read_table(io.BytesIO(first))
    pq.write_table(table, temporary, compression="none")  # the same rows as other bytes
    shards._place(temporary, source.pieces[0])
    assert files.cat_file(f"{url}/{shard}") == first
    assert "another process has scored these rows too, with other content" in caplog.text
    assert len([name for name in names(files, url) if name.startswith(".journal/")]) == 1


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_store_with_the_run_of_other_settings_is_refused(store, data, scorer, profile):
    files, url = store
    score_share(open_source(str(data)), scorer, url, index=0, count=10)
    before = names(files, url)
    other = LarfScorer(profile, keep_states=False, device="cpu")
    with pytest.raises(InputError, match="was started with keep_states true, now false"):
        score_share(open_source(str(data)), other, url, index=1, count=10)
    with pytest.raises(InputError, match="was started with keep_states true, now false"):
        score_source(open_source(str(data)), other, url, resume=True)
    assert names(files, url) == before
    files.pipe_file(f"{url}-2/notes.txt", b"mine")
    with pytest.raises(InputError, match="is not empty: use another folder"):
        score_source(open_source(str(data)), scorer, f"{url}-2")


def test_damaged_and_missing_objects_are_scored_again(store, data, scorer, tmp_path):
    files, url = store
    score_source(open_source(str(data)), scorer, url)
    first, second, third = sorted(name for name in names(files, url) if name.endswith(".parquet"))[:3]
    wanted = {name: files.cat_file(f"{url}/{name}") for name in (first, second, third)}
    files.pipe_file(f"{url}/{first}", wanted[first][:-1] + b"x")  # of the same size
    files.pipe_file(f"{url}/{second}", wanted[second][:-9])
    files.rm_file(f"{url}/{third}")
    with pytest.raises(InputError, match="score again with --resume"):
        Scored.load(url)
    score_source(open_source(str(data)), scorer, url, resume=True)
    files.invalidate_cache()
    assert {name: files.cat_file(f"{url}/{name}") for name in wanted} == wanted
    check_is_plain(files, url, data, scorer, tmp_path)


def test_of_two_files_put_under_one_name_the_first_stays(store, tmp_path):
    files, url = store
    run = run_store.store_of(run_folder(url))
    for place, content in enumerate((b"one", b"two")):
        (tmp_path / "file").write_bytes(content)
        assert run.put_first(tmp_path / "file", "x.parquet") == (place == 0)
    assert files.cat_file(f"{url}/x.parquet") == b"one"


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_shard_of_an_unfinished_run_that_is_cut_is_scored_again(store, data, scorer, tmp_path):
    files, url = store
    score_share(open_source(str(data)), scorer, url, index=0, count=2)
    name = min(name for name in names(files, url) if name.endswith(".parquet"))
    files.pipe_file(f"{url}/{name}", files.cat_file(f"{url}/{name}")[:-9])
    score_source(open_source(str(data)), scorer, url, resume=True)
    check_is_plain(files, url, data, scorer, tmp_path)


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_each_version_of_an_object_is_verified_once_and_not_at_all_if_not_asked(store, data, scorer, monkeypatch):
    files, url = store
    score_source(open_source(str(data)), scorer, url)
    read, original = [], files.cat_file
    monkeypatch.setattr(files, "cat_file", lambda path, **options: read.append(path) or original(path, **options))

    def resume():
        read.clear()
        score_source(open_source(str(data)), scorer, url, resume=True)
        return len([path for path in read if path.endswith(".parquet")])

    with without_verification():
        assert resume() == 0
    assert [resume(), resume()] == [10, 0]


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_plan_that_changes_meanwhile_ends_the_run(store, data, scorer, monkeypatch):
    files, url = store
    original = ShardScorer._place

    def place(self, *args):
        files.pipe_file(f"{url}/plan.json", b"{}")
        return original(self, *args)

    monkeypatch.setattr(ShardScorer, "_place", place)
    with pytest.raises(InputError, match="plan.json was changed while rows were scored"):
        score_source(open_source(str(data)), scorer, url)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError("Access Denied"),
            "may not write .*out .Access Denied.: check the credentials and their rights",
        ),
        (
            OSError("no space left"),
            "cannot write .*out .no space left.: check the address, the connection and the space",
        ),
    ],
)
def test_a_store_that_refuses_is_one_line(store, data, scorer, monkeypatch, error, message):
    files, url = store

    def refuse(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(files, "put_file", refuse)
        with pytest.raises(OSError, match=message):
            score_source(open_source(str(data)), scorer, url)
    assert names(files, url) == set()
    original = files.put_file

    def refuse_shards(path, target, **kwargs):
        return refuse() if target.endswith(".parquet") else original(path, target, **kwargs)

    monkeypatch.setattr(files, "put_file", refuse_shards)
    with pytest.raises(ScoringError, match=message) as raised:
        score_source(open_source(str(data)), scorer, url)
    assert "\n" not in str(raised.value)


def test_the_command_scores_and_selects_in_a_store(s3, data, profile, tmp_path):
    files, url = s3, "s3://bucket/out"
    profile.save_pretrained("s3://bucket/profile")
    for command in (
        ["score", str(data), "--profile", "s3://bucket/profile", "-o", url, "--shard", "0/2"],
        ["score", str(data), "--profile", "s3://bucket/profile", "-o", url, "--resume", "--device", "cpu"],
        ["select", url, "--top-ratio", "0.1", "-o", "s3://bucket/sel"],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    assert "Written to s3://bucket/sel" in result.output
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    kept = [files.cat_file(path) for path in files.find("bucket")]
    kept += [path.read_bytes() for path in cache_home().rglob("*") if path.is_file()]
    assert not any(secret in content for content in kept)


@pytest.mark.usefixtures("s3")
def test_the_command_that_continues_is_shown_without_credentials(data, profile, tmp_path, monkeypatch):
    profile.save_pretrained(tmp_path / "profile")
    fail_at(monkeypatch, 1, KeyboardInterrupt())
    arguments = ["score", str(data), "--profile", str(tmp_path / "profile"), "-o", "s3://bucket/out"]
    monkeypatch.setattr("sys.argv", ["larf-curate", *arguments, "https://u:se/cret@host/more.jsonl"])
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 130
    assert "-o s3://bucket/out https://host/more.jsonl --resume" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("s3://absent-bucket/out", 1, "s3://absent-bucket/out (The specified bucket does not exist): check the bucket"),
        ("s3://key:se/cret@bucket/out", 2, "wanted s3://bucket/out without credentials: give them in the environment"),
        (
            "s3://bucket/out[1]",
            2,
            "results cannot be written to s3://bucket/out[1], which is a glob: give",
        ),
        ("s3://bucket/out/..", 2, "wanted a URL without '.' and '..', got s3://bucket/out/..: give the place itself"),
        ("https://host/out", 2, "results cannot be written to https://host/out: give a path, or a URL of s3://"),
    ],
)
@pytest.mark.usefixtures("s3")
def test_unusable_places_are_one_line(data, profile, tmp_path, url, code, message):
    profile.save_pretrained(tmp_path / "profile")
    result = CliRunner().invoke(main, ["score", str(data), "--profile", str(tmp_path / "profile"), "-o", url])
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.split())
    assert "se/cret" not in result.output


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_statuses_of_the_guard_are_read_from_a_store(store, data, scorer):
    _, url = store
    score_source(open_source(str(data)), scorer, url, guard=DeadlyGuard("nobody"))
    assert guard_statuses(url) == {"ok": 190}


def test_of_two_contents_in_the_journal_that_of_the_object_counts(memory_store):
    store = run_store.store_of(run_folder("memory://bucket/out"))
    plan, size, contents = "a" * 64, 4, (b"one1", b"two2")
    digest = {content: hashlib.sha256(content).hexdigest() for content in contents}
    for content in contents:
        shard = {"file": "x.parquet", "rows": 1, "bytes": size, "sha256": digest[content]}
        store.record(shard, plan=plan, entry=b"{}")
    memory_store.pipe_file("/bucket/out/x.parquet", contents[1])
    assert store.record_of("x.parquet", plan, tuple)["sha256"] == digest[contents[1]]
    assert [shard["sha256"] for shard in store.records(plan, ())["x.parquet"]] == [digest[contents[1]]]
    assert store.records("b" * 64, ()) == {}


def score_in_process(data, scorer, url, guard=None, num_proc=1):
    """What runs in a process of its own."""
    sources.ROWS_PER_PIECE = PER_PIECE
    multiprocessing.get_context = lambda _: CONTEXT
    score_source(open_source(str(data)), scorer, url, resume=True, guard=guard, num_proc=num_proc)


def share_in_process(data, scorer, url, index):
    """What runs in a process of its own."""
    sources.ROWS_PER_PIECE = PER_PIECE
    score_share(open_source(str(data)), scorer, url, index=index, count=2)


def test_names_that_look_like_globs_remove_no_others(store, data, scorer, tmp_path):
    files, url = store
    other = f"{url}/.journal/data1.parquet/of-another-program"
    data = data.rename(data.with_name("data[1].jsonl"))
    score_source(open_source(str(data)), scorer, url)
    assert not [name for name in names(files, url) if name.startswith(".")]
    files.pipe_file(other, b"content")
    files.pipe_file(f"{url}/.journal/data[1].parquet/of-another-program", b"content")
    run_store.store_of(run_folder(url)).remote.remove([".journal/data[1].parquet/of-another-program", "manifest.json"])
    assert {name for name in names(files, url) if name.startswith((".", "m"))} == {other.removeprefix(f"{url}/")}


def score_all(_, pieces, shards, report):
    """An engine of one process, which has the store that is in its memory."""
    for piece in pieces:
        shards.score(piece, report)


def test_a_share_that_is_late_leaves_the_run_as_another_machine_has_finished_it(
    store, data, scorer, tmp_path, monkeypatch
):
    files, url = store
    place, write, scored = ShardScorer._place, ShardScorer._write, []

    def place_late(self, *arguments):
        monkeypatch.setattr(ShardScorer, "_place", place)
        with monkeypatch.context() as other:
            other.setenv("LARF_CURATE_HOME", str(tmp_path / "other"))
            other.setattr(shard, "BATCH_ROWS", PER_PIECE)
            run_with(score_all, open_source(str(data)), scorer, url, resume=True)
        monkeypatch.setattr(ShardScorer, "_write", lambda *arguments: scored.append(arguments))
        place(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(shard, "BATCH_ROWS", 5)  # gives its shards other bytes
        monkeypatch.setattr(ShardScorer, "_place", place_late)
        assert score_share(open_source(str(data)), scorer, url, index=0, count=2) == {"ok": 95}
    assert scored == []
    monkeypatch.setattr(ShardScorer, "_write", write)
    check_is_plain(files, url, data, scorer, tmp_path)


@pytest.mark.parametrize("removed", ["remote", "remote/urls"])
def test_nothing_is_scored_into_the_cache_when_it_no_longer_tells_the_store(
    removed, memory_store, data, scorer, tmp_path, monkeypatch
):
    url, place = "memory://bucket/out", ShardScorer._place

    def place_without(self, *arguments):
        shutil.rmtree(cache_home() / removed)
        place(self, *arguments)

    monkeypatch.setattr(ShardScorer, "_place", place_without)
    with pytest.raises(InputError, match=r"remote was removed .* with --resume"):
        score_share(open_source(str(data)), scorer, url, index=0, count=2)
    assert list(cache_home().rglob("*.parquet")) == []
    monkeypatch.setattr(ShardScorer, "_place", place)
    run_with(score_all, open_source(str(data)), scorer, url, resume=True)  # the removed cache hides that none crashed
    check_is_plain(memory_store, url, data, scorer, tmp_path)


@at_length
@pytest.mark.slow
def test_after_kills_every_row_is_there_once(s3, data, scorer, tmp_path):
    url, log = "s3://bucket/out", tmp_path / "log"
    for wanted in (1, 3, 6):
        process = start(score_in_process, data, scorer, url, log=log)
        end = time.monotonic() + 120
        while len([name for name in names(s3, url) if name.endswith(".parquet")]) < wanted:
            assert time.monotonic() < end, log.read_text()
            assert process.is_alive(), log.read_text()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert "manifest.json" not in names(s3, url)
    score_source(open_source(str(data)), scorer, url, resume=True)
    check_is_plain(s3, url, data, scorer, tmp_path)


@pytest.mark.slow
def test_shares_at_once_also_of_the_same_number_give_the_plain_run(s3, data, scorer, tmp_path):
    url, log = "s3://bucket/out", tmp_path / "log"
    processes = [start(share_in_process, data, scorer, url, index, log=log) for index in (0, 0, 1)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0], log.read_text()
    score_source(open_source(str(data)), scorer, url, resume=True)
    check_is_plain(s3, url, data, scorer, tmp_path)


@at_length
@pytest.mark.slow
def test_a_row_that_ends_the_process_is_set_aside_on_another_machine(s3, data, scorer, tmp_path):
    url, log, guard = "s3://bucket/out", tmp_path / "log", DeadlyGuard("answer 33.")
    for code in (-signal.SIGSEGV, 0):
        process = start(score_in_process, data, scorer, url, guard, log=log)
        process.join()
        assert process.exitcode == code, log.read_text()
        shutil.rmtree(cache_home() / "remote")  # of this run, another machine has nothing
    assert Scored.load(url).rows["larf_status"][33] == "crashed"


@pytest.mark.slow
def test_worker_processes_put_their_shards_into_the_store(s3, data, scorer, tmp_path):
    url, log = "s3://bucket/out", tmp_path / "log"
    process = start(score_in_process, data, scorer, url, None, 2, log=log)
    process.join()
    assert process.exitcode == 0, log.read_text()
    check_is_plain(s3, url, data, scorer, tmp_path)
