import hashlib
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from larf_curate.errors import ReviewServerError
from larf_curate.server import environment as module
from larf_curate.server.environment import SERVER_VERSION, ServerEnvironment
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import try_lock


class FakeInstall:
    """Stands for ``python -m venv`` and pip: writes the interpreter, fails where told to."""

    def __init__(self, environment: ServerEnvironment) -> None:
        self.environment = environment
        self.commands: list[list[str]] = []
        self.broken = False

    def __call__(self, command: list[str], doing: str) -> str:
        self.commands.append(command)
        if "venv" in command:
            self.environment.python.parent.mkdir(parents=True)
            self.environment.python.touch()
        elif self.broken:
            raise KeyboardInterrupt
        return ""


@pytest.fixture
def install(tmp_path, monkeypatch):
    fake = FakeInstall(ServerEnvironment.find(tmp_path / "environments"))
    monkeypatch.setattr(module, "_run", fake)
    return fake


def test_it_is_installed_once_with_the_pinned_server(install):
    said = []
    install.environment.ensure(said.append)
    install.environment.ensure(said.append)
    assert len(install.commands) == 2
    assert [line.split()[0] for line in said] == ["installing", "installed"]
    pip = install.commands[1]
    assert "--require-hashes" in pip
    pinned = Path(pip[pip.index("-r") + 1]).read_text(encoding="utf-8")
    assert f"argilla-server=={SERVER_VERSION}" in pinned
    assert "click==8.1" in pinned


def test_an_interrupted_install_is_done_again(install):
    install.broken = True
    with pytest.raises(KeyboardInterrupt):
        install.environment.ensure(lambda line: None)
    assert install.environment.python.exists()
    assert not install.environment.installed
    (install.environment.path / "half").touch()
    install.broken = False
    install.environment.ensure(lambda line: None)
    assert install.environment.installed
    assert not (install.environment.path / "half").exists()


def test_other_pins_mean_another_folder(tmp_path, monkeypatch):
    before = ServerEnvironment.find(tmp_path)
    pins = tmp_path / "requirements.txt"
    pins.write_text("argilla-server==2.9.0\n")
    monkeypatch.setattr(module, "_REQUIREMENTS", pins)
    assert ServerEnvironment.find(tmp_path).path != before.path


def test_every_package_is_pinned_with_digests():
    text = module._LOCK.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) > 80
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^\\\n]*?)?( +--hash=sha256:[0-9a-f]{64})+", line), line
    locked = {line.split()[0] for line in lines}
    assert {line.lower().replace("_", "-") for line in module._requirement_lines()} <= locked


@pytest.mark.slow
def test_a_package_with_another_digest_is_not_installed(tmp_path, monkeypatch):
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path)), ("CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(f"PIP_{name}", value)
    lock = tmp_path / "requirements.lock"
    monkeypatch.setattr(module, "_LOCK", lock)
    lock.write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ReviewServerError, match="could not install argilla-server"):
        ServerEnvironment.find(tmp_path / "refused").ensure(lambda line: None)
    lock.write_text("tiny==1.0\n")
    with pytest.raises(ReviewServerError, match="could not install argilla-server"):
        ServerEnvironment.find(tmp_path / "refused").ensure(lambda line: None)
    lock.write_text(f"tiny==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    environment = ServerEnvironment.find(tmp_path / "installed")
    environment.ensure(lambda line: None)
    assert environment.installed


def test_an_upgrade_installs_beside_the_older_environment_and_names_it(install, tmp_path, monkeypatch):
    install.environment.ensure(lambda line: None)
    pins = tmp_path / "requirements.txt"
    pins.write_text("argilla-server==2.9.0\n")
    monkeypatch.setattr(module, "_REQUIREMENTS", pins)
    newer = ServerEnvironment.find(install.environment.path.parent)
    older, install.environment = install.environment, newer
    said = []
    newer.ensure(said.append)
    assert newer.installed
    assert older.installed
    assert str(older.path) in said[-1]


def test_a_failed_install_names_the_reason_and_the_remedy(tmp_path):
    environment = ServerEnvironment(tmp_path / "x", base=Path(shutil.which("false")))
    with pytest.raises(ReviewServerError, match="could not make a virtual environment .* check the network"):
        environment.ensure(lambda line: None)
    assert not environment.installed


def test_a_python_that_argilla_does_not_know_is_replaced_by_one_on_the_path(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ReviewServerError, match="requires Python 3.11 to 3.13"):
        ServerEnvironment.find(tmp_path)
    other = tmp_path / "python3.12"
    other.touch(mode=0o755)
    assert ServerEnvironment.find(tmp_path).base == other


def test_the_real_environment_holds_what_is_pinned(argilla_server):
    versions = argilla_server.environment.versions()
    assert versions["argilla-server"] == (SERVER_VERSION, SERVER_VERSION)
    assert all(wanted == have for wanted, have in versions.values())


@pytest.fixture
def platform_homes(tmp_path, monkeypatch):
    """A home folder of its own, and the data and cache folders in it that Linux has by default."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("LARF_CURATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".local/share/larf-curate", tmp_path / ".cache/larf-curate"


def test_decisions_are_data_and_no_cache(platform_homes, tmp_path, monkeypatch):
    data, _ = platform_homes
    assert ServerHome.at().path == data / "argilla"
    monkeypatch.setenv("LARF_CURATE_HOME", str(tmp_path / "a"))
    assert ServerHome.at().path == tmp_path / "a" / "argilla"


def test_the_records_of_an_earlier_version_are_moved_out_of_the_cache_with_a_notice(platform_homes, caplog):
    data, cache = platform_homes
    (cache / "argilla").mkdir(parents=True)
    (cache / "argilla" / "argilla.db").write_text("records")
    (cache / "argilla" / "argilla.db").chmod(0o600)
    assert ServerHome.at().database.read_text() == "records"
    assert ServerHome.at().database.stat().st_mode & 0o777 == 0o600
    assert not (cache / "argilla").exists()
    assert f"moved {cache}/argilla, which is not a cache, to {data}/argilla" in caplog.text


def test_a_server_that_still_runs_keeps_its_folder_until_it_has_stopped(platform_homes):
    data, cache = platform_homes
    (cache / "argilla").mkdir(parents=True)
    handle = try_lock(cache / "argilla" / "running.lock")
    assert ServerHome.at().path == cache / "argilla"
    os.close(handle)
    assert ServerHome.at().path == data / "argilla"


def test_records_in_both_places_are_never_merged_nor_overwritten(platform_homes, caplog):
    data, cache = platform_homes
    for folder in (data, cache):
        (folder / "argilla").mkdir(parents=True)
        (folder / "argilla" / "argilla.db").write_text(str(folder))
    assert ServerHome.at().database.read_text() == str(data)
    assert (cache / "argilla" / "argilla.db").read_text() == str(cache)
    assert f"{cache}/argilla, of an earlier version, is not read" in caplog.text
