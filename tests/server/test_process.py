import json
import os
import subprocess
import sys

import psutil
import pytest

from larf_curate.errors import ReviewServerError
from larf_curate.server import EmbeddedServer
from larf_curate.server import process as module
from larf_curate.server.locks import try_lock
from larf_curate.server.process import find_process

SERVER = """# stands for inside.launch
import fcntl, os, sys, time
handle = os.open(os.path.join(sys.argv[2], "running.lock"), os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(handle, fcntl.LOCK_EX)
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(module, "_STATE_TIMEOUT", 0.3)


@pytest.fixture
def start(request):
    """Starts a process, ended after the test."""

    def started(*command):
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        request.addfinalizer(process.stdout.close)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    return started


@pytest.fixture
def foreign(start):
    return start("sleep", "600")


@pytest.fixture
def server(tmp_path):
    stopped = EmbeddedServer(tmp_path / "home", port=0)
    stopped.home.make()
    return stopped


@pytest.fixture
def running(server, start):
    """A process that serves the home, as far as its lock and its command line show."""
    process = start(sys.executable, "-c", SERVER, "--home", str(server.home.path))
    assert process.stdout.readline() == b"locked\n"
    return process


def true_state(process):
    """Field 22 of the kernel's status, in hundredths of a second after boot; the command's name may contain spaces."""
    with open(f"/proc/{process.pid}/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    return {"pid": process.pid, "port": 1, "started": ticks / os.sysconf("SC_CLK_TCK")}


def test_a_state_file_left_by_a_crash_is_never_taken_for_a_server(server):
    server.home.state.write_text(json.dumps({"pid": os.getpid(), "port": 1}))
    server.home.running_lock.touch()
    assert find_process(server.home) is None
    assert not server.stop()
    assert not server.status().running


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads the start time from /proc")
def test_the_process_that_the_state_file_describes_is_found_and_ended(server, running):
    server.home.state.write_text(json.dumps(true_state(running)))
    assert find_process(server.home).pid == running.pid
    assert not find_process(server.home).listens
    assert server.stop()
    assert running.wait(10) < 0


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads the start time from /proc")
@pytest.mark.parametrize(
    "edit",
    [
        lambda state, foreign: state | {"pid": foreign.pid},
        lambda state, foreign: true_state(foreign),
        lambda state, foreign: state | {"pid": os.getpid()},
        lambda state, foreign: state | {"started": state["started"] - 60},
        lambda state, foreign: state | {"started": state["started"] + 60},
        lambda state, foreign: state | {"started": float("nan")},
        lambda state, foreign: state | {"pid": 2**70},
        lambda state, foreign: state | {"pid": -foreign.pid},
        lambda state, foreign: state | {"pid": str(state["pid"])},
        lambda state, foreign: state | {"port": 0},
        lambda state, foreign: state | {"more": 1},
        lambda state, foreign: {"pid": state["pid"], "port": 1},
        lambda state, foreign: [state],
        lambda state, foreign: None,
    ],
)
def test_an_edited_state_file_is_not_believed_and_the_server_is_ended_and_nothing_else(server, running, foreign, edit):
    server.home.state.write_text(json.dumps(edit(true_state(running), foreign)))
    assert find_process(server.home) is None
    assert not server.status().running
    with pytest.raises(ReviewServerError, match="no server runs"):
        _ = server.url
    assert server.stop()
    assert running.wait(10) < 0
    assert foreign.poll() is None


def test_without_a_state_file_the_server_is_ended_all_the_same(server, running):
    assert server.stop()
    assert running.wait(10) < 0


def test_a_server_that_a_killed_command_left_before_it_had_the_lock_is_ended_too(server, running, start):
    waiting = start(sys.executable, "-c", SERVER, "--home", str(server.home.path))
    assert server.stop()
    assert running.wait(10) < 0
    assert waiting.wait(10) < 0
    assert not server.stop()


def test_the_server_of_another_home_and_a_process_that_cannot_be_told_are_not_ended(server, start, foreign, tmp_path):
    (tmp_path / "other").mkdir(mode=0o700)
    other = start(sys.executable, "-c", SERVER, "--home", str(tmp_path / "other"))
    assert other.stdout.readline() == b"locked\n"
    handle = try_lock(server.home.running_lock)
    started = psutil.Process(other.pid).create_time() - psutil.boot_time()
    server.home.state.write_text(json.dumps({"pid": other.pid, "port": 1, "started": started}))
    with pytest.raises(ReviewServerError, match=f"a process holds {server.home.running_lock}, but none has"):
        server.stop()
    os.close(handle)
    assert other.poll() is None
    assert foreign.poll() is None


def test_a_home_named_by_a_link_is_the_same_home(server, running, tmp_path):
    (tmp_path / "link").symlink_to(server.home.path)
    assert EmbeddedServer(tmp_path / "link").stop()
    assert running.wait(10) < 0


def test_a_second_start_beside_a_server_without_a_state_says_what_to_do(server, running, monkeypatch):
    monkeypatch.setattr(EmbeddedServer, "environment", type("E", (), {"ensure": lambda *_: sys.executable})())
    with pytest.raises(ReviewServerError, match="does not describe it: stop it with `larf-curate review down`"):
        server.start()
    assert running.poll() is None


def test_a_server_that_ignores_the_first_signal_is_killed(server, start, monkeypatch):
    monkeypatch.setattr("larf_curate.server.embedded._STOP_TIMEOUT", 0.3)
    deaf = SERVER.replace("print(", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(")
    process = start(sys.executable, "-c", deaf, "--home", str(server.home.path))
    assert process.stdout.readline() == b"locked\n"
    assert server.stop()
    assert process.wait(10) == -9
