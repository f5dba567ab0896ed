import os
from types import SimpleNamespace

import pytest

from larf_curate.errors import ReviewServerError
from larf_curate.server import EmbeddedServer
from larf_curate.server import home as module
from larf_curate.server.addresses import Listening
from larf_curate.server.credentials import Account, ensure_credentials, read_credentials, write_credentials
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import is_locked, try_lock
from larf_curate.server.process import launch


@pytest.fixture
def home(tmp_path):
    made = ServerHome(tmp_path / "home")
    made.make()
    return made


def refused(home, *words):
    """Starting is refused before anything is written, and the doctor says the same."""
    before = sorted(home.path.iterdir())
    server = EmbeddedServer(home.path, port=0)
    with pytest.raises(ReviewServerError) as error:
        server.start()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(home.path.iterdir()) == before
    check = next(check for check in server.doctor() if check.name == "home")
    assert not check.ok
    assert f"{check.found}: {check.remedy}" == str(error.value)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_home_that_others_can_write_to_is_refused(home, mode):
    home.path.chmod(mode)
    refused(home, f"mode {mode:04o}", f"chmod 700 {home.path}")


def test_a_home_of_another_user_is_refused(home, monkeypatch):
    owner = home.path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    refused(home, "belongs to another user", "--home")


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs"])
def test_a_home_on_a_network_file_system_is_refused(home, tmp_path, monkeypatch, kind):
    mounts = [("/", "ext4"), (str(tmp_path), "xfs"), (str(tmp_path), kind), (str(tmp_path / "ho"), "ext4")]
    partitions = [SimpleNamespace(mountpoint=point, fstype=fstype) for point, fstype in mounts]
    monkeypatch.setattr(module.psutil, "disk_partitions", lambda *, all: partitions)
    refused(home, f"network file system ({kind})", "SQLite", "--home")


def test_a_local_disk_below_a_network_mount_is_allowed(home, tmp_path, monkeypatch):
    mounts = [(str(tmp_path), "nfs4"), (str(home.path), "ext4")]
    partitions = [SimpleNamespace(mountpoint=point, fstype=fstype) for point, fstype in mounts]
    monkeypatch.setattr(module.psutil, "disk_partitions", lambda *, all: partitions)
    assert home.problem() is None


NAMES = [
    "server.log",
    "server.json",
    "credentials.json",
    "running.lock",
    "starting.lock",
    "argilla.db",
    "search.db",
    "tmp",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("exists", [True, False])
def test_a_planted_link_is_refused_and_its_target_not_touched(home, tmp_path, name, exists):
    target = tmp_path / "target"
    if exists:
        target.write_text("theirs")
    (home.path / name).symlink_to(target)
    refused(home, f"{home.path / name} is a link")
    assert (target.read_text() if target.exists() else None) == ("theirs" if exists else None)


def test_a_link_planted_after_the_check_is_not_followed_either(home, tmp_path):
    target = tmp_path / "target"
    target.write_text("theirs")
    credentials = ensure_credentials(home.credentials)
    temporary = home.path / f".credentials.json.{os.getpid()}.tmp"
    temporary.symlink_to(target)
    write_credentials(home.credentials, credentials.with_account(Account.random("alice", role="annotator")))
    assert read_credentials(home.credentials).account("alice") is not None
    home.credentials.unlink()
    for path in (home.credentials, home.log, home.running_lock, home.starting_lock):
        path.symlink_to(target)
    for act in (
        lambda: ensure_credentials(home.credentials),
        lambda: read_credentials(home.credentials),
        lambda: launch(tmp_path / "no python", home, 0, Listening()),
        lambda: try_lock(home.starting_lock),
        lambda: is_locked(home.running_lock),
    ):
        with pytest.raises(ReviewServerError, match="is a link"):
            act()
    assert target.read_text() == "theirs"
