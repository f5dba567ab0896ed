"""Backups of the embedded server without a server: what is refused, and what kills and damage leave."""

import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
import zipfile
from contextlib import closing, suppress
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from larf_curate.cli import main
from larf_curate.errors import InputError, LarfCurateError, ReviewServerError
from larf_curate.records import write_sealed
from larf_curate.server import EmbeddedServer, archive
from larf_curate.server import restore as restoring
from larf_curate.server.locks import try_lock
from tests.fixtures.long import at_length
from tests.fixtures.make_backup import BACKUP

COUNTS = {"datasets": 1, "records": 6, "responses": 7, "users": 3}
KILLS = 10


@pytest.fixture
def queues(tmp_path):
    return tmp_path / "queues"


@pytest.fixture
def server(tmp_path, queues):
    """A home with a review, as a stopped server leaves it."""
    restored = EmbeddedServer(tmp_path / "home")
    restored.restore(BACKUP, queues=queues)
    return restored


def contents(home):
    """Everything that a restored home has: its tables, accounts, and names and modes of files."""
    with closing(sqlite3.connect(f"file:{home.database}?mode=ro&immutable=1", uri=True)) as connection:
        tables = list(connection.iterdump())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.path.iterdir()}
    return tables, home.credentials.read_text(), modes


def dataset_of(server):
    with closing(sqlite3.connect(server.home.database)) as connection:
        (found,) = connection.execute("SELECT id FROM datasets").fetchone()
    return f"{found[:8]}-{found[8:12]}-{found[12:16]}-{found[16:20]}-{found[20:]}"


def rewritten(path, change, source=BACKUP):
    """A backup whose manifest and files were changed, with digests that are right again."""
    with zipfile.ZipFile(source) as old:
        files = {name: old.read(name) for name in old.namelist() if name != archive.MANIFEST}
        manifest = json.loads(old.read(archive.MANIFEST))
    change(manifest, files)
    for name in manifest["files"]:
        if manifest["files"][name] is None:
            content = files[name]
            digest = archive.hashlib.sha256(content).hexdigest()
            manifest["files"][name] = {"bytes": len(content), "sha256": digest, "modified": 0}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in files.items():
            new.writestr(name, content)
        new.writestr(archive.MANIFEST, json.dumps(manifest))
    return path


def refused(tmp_path, source, *words):
    """A restore is refused with one line and leaves nothing."""
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(LarfCurateError) as error:
        EmbeddedServer(tmp_path / "new" / "home").restore(source, queues=tmp_path / "queues")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    new = tmp_path / "new"
    assert sorted(path for path in tmp_path.rglob("*") if path != new) == before
    if new.exists():
        new.rmdir()


def test_a_restored_home_is_private_and_has_what_was_backed_up(server, tmp_path, queues):
    tables, accounts, modes = contents(server.home)
    assert modes == {"argilla.db": 0o600, "credentials.json": 0o600, "running.lock": 0o600}
    assert stat.S_IMODE(server.home.path.stat().st_mode) == 0o700
    assert [account.username for account in server.credentials.accounts] == ["argilla", "alice", "bob"]

    before = os.umask(0)
    try:
        again = server.backup(tmp_path / "again.zip", queues=queues)
    finally:
        os.umask(before)
    assert again.counts == COUNTS
    assert stat.S_IMODE((tmp_path / "again.zip").stat().st_mode) == 0o600
    assert not server.home.snapshot.exists()
    other = EmbeddedServer(tmp_path / "other")
    (tmp_path / "other").mkdir(mode=0o755)  # an empty folder is taken
    assert other.restore(tmp_path / "again.zip", queues=queues).manifest == again
    assert contents(other.home) == (tables, accounts, modes)
    assert stat.S_IMODE(other.home.path.stat().st_mode) == 0o700
    assert not list(tmp_path.glob(".*"))


def test_the_search_index_the_log_and_locks_are_not_in_it(server, tmp_path, queues):
    server.home.search_index.write_text("index")
    server.home.log.write_text("log")
    server.backup(tmp_path / "b.zip", queues=queues)
    with zipfile.ZipFile(tmp_path / "b.zip") as written:
        assert set(written.namelist()) == {"argilla.db", "credentials.json", "backup.json"}


def test_an_older_backup_is_replaced_and_any_other_file_is_not(server, tmp_path, queues):
    target = tmp_path / "b.zip"
    server.backup(target, queues=queues)
    first = target.read_bytes()
    with closing(sqlite3.connect(server.home.database)) as connection, connection:
        connection.execute("DELETE FROM responses")
    assert server.backup(target, queues=queues).counts == COUNTS | {"responses": 0}
    assert target.read_bytes() != first
    for name, content in {"rows.jsonl": b"{}", "empty": b"", "cut.zip": first[:-30]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match="exists and is no backup"):
            server.backup(tmp_path / name, queues=queues)
        assert (tmp_path / name).read_bytes() == content
    with pytest.raises(OSError, match="no regular file"):
        server.backup(tmp_path, queues=queues)


def test_a_home_without_data_and_a_damaged_database_are_not_backed_up(server, tmp_path, queues):
    with pytest.raises(ReviewServerError, match="nothing to back up"):
        EmbeddedServer(tmp_path / "none").backup(tmp_path / "b.zip", queues=queues)
    data = bytearray(server.home.database.read_bytes())
    data[8192:60000] = b"x" * (60000 - 8192)
    server.home.database.write_bytes(data)
    with pytest.raises(ReviewServerError, match="doctor"):
        server.backup(tmp_path / "b.zip", queues=queues)
    assert not (tmp_path / "b.zip").exists()
    assert not server.home.snapshot.exists()


def test_only_an_empty_folder_is_restored_into(server, tmp_path, queues):
    before = contents(server.home)
    with pytest.raises(ReviewServerError, match=r"is not empty: .* --home"):
        server.restore(BACKUP, queues=queues)
    assert contents(server.home) == before
    (tmp_path / "file").write_text("theirs")
    with pytest.raises(ReviewServerError, match="is not empty"):
        EmbeddedServer(tmp_path / "file").restore(BACKUP, queues=queues)
    assert (tmp_path / "file").read_text() == "theirs"


def test_a_folder_named_by_a_link_is_restored_into_where_it_leads(tmp_path, queues):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "home")
    EmbeddedServer(tmp_path / "link").restore(BACKUP, queues=queues)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "home" / "argilla.db").exists()


def add(name, content=b"{}"):
    def change(manifest, files):
        files[name] = content
        manifest["files"][name] = None

    return change


def put(name, content):
    return add(name, content)


def drop(name):
    def change(manifest, files):
        del files[name], manifest["files"][name]

    return change


def say(**fields):
    return lambda manifest, files: manifest.update(fields)


def with_sql(statement):
    def change(manifest, files):
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(files["argilla.db"])
            connection.executescript(statement)
            files["argilla.db"] = connection.serialize()
        manifest["files"]["argilla.db"] = None

    return change


CHANGES = {
    "a newer format": (say(version=2, larf_curate="9.9"), ["newer", "9.9", "update"]),
    "a newer format with other fields": (say(version=3, shape="new"), ["newer", "update"]),
    "a newer Argilla": (say(argilla_server="2.10.0"), ["2.10.0", "update"]),
    "another format": (say(format="something else"), ["no backup"]),
    "an unknown field": (say(more=1), ["unknown field"]),
    "a version that is no number": (say(version="1"), ["version"]),
    "other counts": (say(counts=COUNTS | {"responses": 8}), ["not what its manifest says"]),
    "another schema": (say(schema="0" * 12), ["not what its manifest says"]),
    "a way out": (add("../evil.json"), ["../evil.json", "no backup has"]),
    "a way out through the queues": (add("queues/../../evil.json"), ["no backup has"]),
    "an absolute name": (add("/tmp/evil.json"), ["no backup has"]),
    "a name with a backslash": (add("queues\\evil.json"), ["no backup has"]),
    "a pickle": (add("state.pkl", b"\x80\x04."), ["no backup has"]),
    "a link": (add("running.lock"), ["no backup has"]),
    "no database": (drop("argilla.db"), ["lacks"]),
    "no accounts": (drop("credentials.json"), ["lacks"]),
    "accounts that are none": (put("credentials.json", b'{"accounts": []}'), ["credentials.json", "damaged"]),
    "accounts that are no text": (put("credentials.json", b"\xff\xfe"), ["credentials.json", "damaged"]),
    "no SQLite": (put("argilla.db", b"no database" * 500), ["damaged"]),
    "an empty database": (put("argilla.db", b""), ["damaged"]),
    "a trigger": (with_sql("CREATE TRIGGER t AFTER INSERT ON users BEGIN DELETE FROM users; END"), ["triggers"]),
    "a view": (with_sql("DROP TABLE responses; CREATE VIEW responses AS SELECT 1"), ["triggers"]),
    "no responses": (with_sql("DROP TABLE responses"), ["damaged"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_backup_of_this_or_an_earlier_version_is_refused(tmp_path, name):
    change, words = CHANGES[name]
    refused(tmp_path, rewritten(tmp_path / "b.zip", change), *words)


def test_files_beside_those_of_the_manifest_and_wrong_digests_are_refused(tmp_path):
    shutil.copy(BACKUP, tmp_path / "more.zip")
    with zipfile.ZipFile(tmp_path / "more.zip", "a") as more:
        more.writestr("more", "")
    refused(tmp_path, tmp_path / "more.zip", "other files")
    shutil.copy(BACKUP, tmp_path / "twice.zip")
    with zipfile.ZipFile(tmp_path / "twice.zip", "a") as twice, pytest.warns(UserWarning, match="Duplicate name"):
        twice.writestr("argilla.db", "")
    refused(tmp_path, tmp_path / "twice.zip", "other files")

    def longer(manifest, files):
        files["argilla.db"] += b"\0" * 10_000_000

    def other(manifest, files):
        files["credentials.json"] = files["credentials.json"].replace(b"annotator", b"annotatoR")

    for change in (longer, other):
        refused(tmp_path, rewritten(tmp_path / "wrong.zip", change), "was changed")


def test_files_that_are_no_archive_are_refused(tmp_path):
    whole = BACKUP.read_bytes()
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as foreign:
        foreign.writestr("table.csv", "a,b")
    for name, content in {
        "text": b"text" * 99,
        "empty": b"",
        "cut": whole[:-1],
        "half": whole[: len(whole) // 2],
    }.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path, tmp_path / name, "is no backup")
    refused(tmp_path, tmp_path / "foreign.zip", "no backup", "backup.json")
    refused(tmp_path, tmp_path / "missing", "does not exist")
    refused(tmp_path, tmp_path, "no backup")


def test_every_changed_byte_is_refused_or_changes_nothing(tmp_path, queues):
    whole, rng = BACKUP.read_bytes(), random.Random(0)
    EmbeddedServer(tmp_path / "whole").restore(BACKUP, queues=queues)
    wanted = contents(EmbeddedServer(tmp_path / "whole").home)
    found = 0
    for place in rng.sample(range(len(whole)), 80):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        (tmp_path / "damaged.zip").write_bytes(damaged)
        server = EmbeddedServer(tmp_path / "damaged")
        try:
            server.restore(tmp_path / "damaged.zip", queues=queues)
        except LarfCurateError:
            found += 1
            assert not server.home.path.exists()
        else:  # in a part that is not read, such as a time of the archive
            assert contents(server.home) == wanted
            shutil.rmtree(server.home.path)
    assert found > 70


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(restoring.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    refused(tmp_path, BACKUP, "GB", "--home")


def test_records_of_queues_go_with_it_and_existing_ones_stay(server, tmp_path, queues):
    dataset = dataset_of(server)
    record = {"queue": "kept-review", "selection": str(tmp_path / "selection")}
    write_sealed(queues / f"{dataset}.json", record)
    os.utime(queues / f"{dataset}.json", ns=(0, 1_700_000_000_123_456_789))
    write_sealed(queues / "11111111-1111-1111-1111-111111111111.json", record)  # of another server
    server.backup(tmp_path / "b.zip", queues=queues)
    with zipfile.ZipFile(tmp_path / "b.zip") as written:
        assert [name for name in written.namelist() if name.startswith("queues/")] == [f"queues/{dataset}.json"]
    new = tmp_path / "elsewhere"
    restored = EmbeddedServer(tmp_path / "first").restore(tmp_path / "b.zip", queues=new)
    assert restored.queues == (new / f"{dataset}.json",)
    assert (new / f"{dataset}.json").read_bytes() == (queues / f"{dataset}.json").read_bytes()
    assert (new / f"{dataset}.json").stat().st_mtime_ns == 1_700_000_000_123_456_789  # its place among other queues
    assert not (tmp_path / "first" / "queues").exists()

    write_sealed(new / f"{dataset}.json", record | {"selection": "/theirs"})
    theirs = (new / f"{dataset}.json").read_bytes()
    restored = EmbeddedServer(tmp_path / "second").restore(tmp_path / "b.zip", queues=new)
    assert (restored.queues, restored.differing) == ((), (new / f"{dataset}.json",))
    assert (new / f"{dataset}.json").read_bytes() == theirs


def run(*arguments, home, code=0):
    result = CliRunner(env={"LARF_CURATE_HOME": str(home)}).invoke(main, ["review", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_commands_say_what_is_secret_and_what_is_missing(server, tmp_path, queues):
    here, there = tmp_path, tmp_path / "there"
    write_sealed(queues / f"{dataset_of(server)}.json", {"queue": "kept-review", "selection": "/gone/selection"})
    told = run("backup", tmp_path / "b.zip", "--home", server.home.path, home=here)
    assert "1 dataset, 6 records, 7 responses, 3 users" in told.stdout
    assert "whoever can read it can sign in: keep" in told.stderr
    written = json.loads(run("backup", tmp_path / "b.zip", "--home", server.home.path, "--json", home=here).stdout)
    assert written["counts"] == COUNTS
    password = server.credentials.owner.password
    assert password not in told.output + json.dumps(written)

    told = run("restore", tmp_path / "b.zip", home=there)
    assert str(there / "argilla") in told.stdout
    assert "larf-curate review up --detach" in told.stdout
    assert "/gone/selection is not on this machine" in told.stderr
    assert password not in told.output
    assert EmbeddedServer(there / "argilla").credentials == server.credentials
    assert "is not empty" in run("restore", tmp_path / "b.zip", home=there, code=1).output
    again = ("restore", tmp_path / "b.zip", "--home", tmp_path / "third", "--json")
    restored = json.loads(run(*again, home=there).stdout)
    assert restored["counts"] == COUNTS
    assert restored["missing_selections"] == ["/gone/selection"]


def large(server):
    """Make a backup take a while: 60 MB that hardly compress."""
    rng = random.Random(0)
    with closing(sqlite3.connect(server.home.database)) as connection, connection:
        connection.execute("CREATE TABLE filling (content BLOB)")
        connection.executemany("INSERT INTO filling VALUES (?)", [(rng.randbytes(1_000_000),) for _ in range(60)])


def killed(arguments, home, delay):
    """Run a review command and kill it after so many seconds; returns whether it was killed."""
    command = [sys.executable, "-m", "larf_curate", "review", *map(str, arguments)]
    environment = {**os.environ, "LARF_CURATE_HOME": str(home)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        output = process.communicate()[0].decode()
        assert process.returncode in (0, -signal.SIGKILL), output
        return process.returncode != 0


@at_length
@pytest.mark.timeout(600)
def test_killed_backups_leave_the_older_one_and_killed_restores_nothing(server, tmp_path, queues):
    target, rng = tmp_path / "b.zip", random.Random(1)
    server.backup(target, queues=queues)
    older = target.read_bytes()
    large(server)
    start = time.monotonic()
    assert not killed(("backup", tmp_path / "large.zip", "--home", server.home.path), tmp_path, 60)
    seconds = min(time.monotonic() - start, 6)
    left = 0
    for _ in range(KILLS):
        if killed(("backup", target, "--home", server.home.path), tmp_path, rng.uniform(0.3, 1) * seconds):
            left += server.home.snapshot.exists()
            if target.read_bytes() != older:  # killed when it was complete
                late = EmbeddedServer(tmp_path / "late")
                late.restore(target, queues=queues)
                assert contents(late.home)[0] == contents(server.home)[0]
                break
    assert server.backup(target, queues=queues).counts == COUNTS
    assert not server.home.snapshot.exists()
    assert not list(tmp_path.glob(".b.zip.*"))

    new, unfinished = EmbeddedServer(tmp_path / "new"), 0
    start = time.monotonic()
    assert not killed(("restore", target, "--home", tmp_path / "whole"), tmp_path, 60)
    seconds = min(time.monotonic() - start, 6)
    for _ in range(KILLS):
        killed(("restore", target, "--home", new.home.path), tmp_path, rng.uniform(0.3, 1) * seconds)
        unfinished += (tmp_path / ".new.restoring").exists()
        if new.home.path.exists():
            assert contents(new.home)[0] == contents(server.home)[0]
            shutil.rmtree(new.home.path)
    new.restore(target, queues=queues)
    assert contents(new.home)[0] == contents(server.home)[0]
    assert not (tmp_path / ".new.restoring").exists()
    assert left
    assert unfinished


def test_a_second_restore_at_the_same_time_and_a_server_on_a_part_are_refused(tmp_path, queues):
    part = tmp_path / ".home.restoring"
    part.mkdir(mode=0o700)
    handle = try_lock(part / "running.lock")
    with pytest.raises(ReviewServerError, match="another restore"):
        EmbeddedServer(tmp_path / "home").restore(BACKUP, queues=queues)
    os.close(handle)
    (part / "argilla.db").write_text("a part")
    EmbeddedServer(tmp_path / "home").restore(BACKUP, queues=queues)
    assert not part.exists()
