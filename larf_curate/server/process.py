"""The process of the server: find, start and terminate it."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import psutil
from pydantic import ConfigDict, Field

from larf_curate.errors import ReviewServerError
from larf_curate.files import parse_json
from larf_curate.records import STRICT, parse_record
from larf_curate.server import addresses
from larf_curate.server.addresses import Listening
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import is_locked
from larf_curate.server.private_files import open_private, read_private

_MAX_LOG_BYTES = 5_000_000
_POLL_INTERVAL = 0.1  # seconds
_STATE_TIMEOUT = 10.0  # seconds from the lock of a starting server to its state file
_START_TOLERANCE = 1.0  # seconds
# This folder goes last on the path, so that `inside` can be imported but nothing here shadows a module of the server's
# environment.
_BOOTSTRAP = "import sys; sys.path.append(sys.argv.pop(1)); from inside.launch import main; main()"
_FORWARDED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "HF_ENDPOINT", "HF_HUB_OFFLINE")
_HOME_TAKEN = 97
_EXIT_REASONS = {  # by exit code of `inside.launch`
    _HOME_TAKEN: "another server already runs on this home: stop it with `larf-curate review down`",
    98: "port {port} on {address} is taken by another program: end it or choose another with --port (0: any free one)",
    99: "cannot listen on port {port} of {address}: choose a port above 1023 with --port, and an address with --host",
    100: "its database was written by a newer version of Argilla: update larf-curate, or restore a backup",
}


@dataclass(frozen=True)
class ServerProcess:
    """A running server process, as its state file describes it.

    Args:
        pid: Process id.
        port: Port that it listens on.
        started: Seconds from the start of the machine to that of the process.
        address: IP address that it listens on; servers of earlier versions do not record it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    pid: Annotated[int, Field(gt=1, lt=2**31)]
    port: Annotated[int, Field(gt=0, lt=2**16)]
    started: float
    address: str = addresses.LOOPBACK

    @property
    def url(self) -> str:
        """URL of the web interface and the API on this machine."""
        return addresses.url(addresses.local_address(self.address), self.port)

    @property
    def public_urls(self) -> list[str]:
        """URLs at which other machines reach it; empty if they cannot."""
        if not addresses.is_public(self.address):
            return []
        return [addresses.url(address, self.port) for address in addresses.reachable(self.address)]

    @property
    def listens(self) -> bool:
        """Whether the process accepts connections on its port: only then it may be sent a key."""
        with suppress(psutil.Error):
            connections = psutil.Process(self.pid).net_connections("tcp")
            return any(found.status == psutil.CONN_LISTEN and found.laddr.port == self.port for found in connections)
        return False


def find_process(home: ServerHome) -> ServerProcess | None:
    """Find the server process of a home; returns None if there is none, or none that its state file describes.

    The lock decides whether a server runs. The state file is believed only if the process that it names has the command
    line of a server of this home and started when the file says: it may be stale, or edited.
    """
    if not is_locked(home.running_lock):
        return None
    try:
        path = home.state
        state = parse_record(parse_json(read_private(path), path), ServerProcess, path=path, remedy="start it again")
        process = psutil.Process(state.pid)
    except (OSError, ValueError, ReviewServerError, psutil.Error):  # an `InputError` is a `ValueError`
        return None
    return state if _serves(process, home) and abs(_started(process) - state.started) < _START_TOLERANCE else None


def await_process(home: ServerHome) -> ServerProcess | None:
    """Find the server process of a home as `find_process` does, also if it has just begun to start.

    Raises:
        ReviewServerError: If a server runs, but its state file does not describe it.
    """
    deadline = time.monotonic() + _STATE_TIMEOUT
    while (state := find_process(home)) is None and is_locked(home.running_lock):
        if time.monotonic() > deadline:
            raise ReviewServerError(
                f"a server runs on {home.path}, but {home.state} does not describe it: stop it with "
                "`larf-curate review down` and start it again"
            )
        time.sleep(_POLL_INTERVAL)
    return state


def _server_of(home: ServerHome) -> psutil.Process | None:
    """The process that serves a home, by its state file or else by its command line; None if there is none."""
    if (state := find_process(home)) is not None:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(state.pid)
    return next((process for process in psutil.process_iter() if _serves(process, home)), None)


def _serves(process: psutil.Process, home: ServerHome) -> bool:
    """Whether a process of this user has the command line of a server of the home."""
    try:
        arguments, user = process.cmdline(), process.uids().effective
    except psutil.Error:
        return False
    if user != os.geteuid() or "--home" not in arguments[:-1] or not any("inside.launch" in part for part in arguments):
        return False
    return bool(os.path.realpath(arguments[arguments.index("--home") + 1]) == os.path.realpath(home.path))


def _started(process: psutil.Process) -> float:
    """Seconds from the start of the machine to that of the process: unlike times of day, steps of the clock keep it."""
    boot_time = psutil.boot_time()
    return float(process.create_time() - boot_time)


def launch(python: Path, home: ServerHome, port: int, listening: Listening) -> "subprocess.Popen[bytes]":
    """Start the server process, which keeps running when this process exits.

    It reads secrets from files in the home: arguments are visible to other users, and child processes inherit the
    environment.

    Args:
        python: Interpreter of the server's virtual environment.
        home: Folder of the server.
        port: Port to listen on; 0 takes any free port.
        listening: Where to listen.

    Returns:
        The process, which may still be starting.
    """
    if home.log.exists() and home.log.stat(follow_symlinks=False).st_size > _MAX_LOG_BYTES:
        os.replace(home.log, home.log.with_suffix(".log.1"))
    environment = {name: os.environ[name] for name in _FORWARDED_VARIABLES if name in os.environ}
    command = [str(python), "-I", "-W", "ignore", "-c", _BOOTSTRAP, str(Path(__file__).parent)]
    where = ["--port", str(port), "--address", listening.address, *(f"--name={name}" for name in listening.names)]
    with open(open_private(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as log:
        return subprocess.Popen(
            [*command, "--home", str(home.path), *where],
            cwd=home.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until_ready(
    home: ServerHome,
    *,
    timeout: float,
    is_answering: Callable[[ServerProcess], bool],
    process: "subprocess.Popen[bytes] | None" = None,
    port: int = 0,
    address: str = addresses.LOOPBACK,
) -> ServerProcess:
    """Wait until the server of a home responds to requests.

    Args:
        home: Folder of the server.
        timeout: Seconds to wait.
        is_answering: Whether a server responds and accepts our key.
        process: The process that ``launch`` returned; None for a server that another process started.
        port: The requested port, for the error message.
        address: The requested address, for the error message.

    Raises:
        ReviewServerError: If the process exits, or does not respond in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        code = process.poll() if process is not None else None
        locked = is_locked(home.running_lock)
        if code is not None and not (code == _HOME_TAKEN and locked):
            reason = _EXIT_REASONS.get(code, f"it exited with code {code} while starting: see {home.log}")
            raise ReviewServerError(f"Argilla could not start: {reason.format(port=port, address=address)}")
        if process is None and not locked:
            raise ReviewServerError(f"Argilla could not start: it exited while starting: see {home.log}")
        state = find_process(home)
        ours = process is None or code is not None or (state is not None and state.pid == process.pid)
        if state is not None and ours and state.listens and is_answering(state):
            return state
        time.sleep(_POLL_INTERVAL)
    raise ReviewServerError(f"Argilla did not respond within {timeout:.0f} s: see {home.log}, then try again")


def terminate(home: ServerHome, *, timeout: float) -> bool:
    """Terminate the server of a home: SIGTERM, then SIGKILL if it still runs after ``timeout`` seconds.

    Only a process with the command line of a server of this home is sent a signal. There are several if a command was
    killed just after it had started one, which has not got the lock of the home yet.

    Returns:
        Whether a server was running.

    Raises:
        ReviewServerError: If the server does not exit even after SIGKILL, or cannot be identified.
    """
    deadline = time.monotonic() + _STATE_TIMEOUT
    while (process := _server_of(home)) is None and is_locked(home.running_lock) and time.monotonic() < deadline:
        time.sleep(_POLL_INTERVAL)
    if process is None and is_locked(home.running_lock):
        raise ReviewServerError(
            f"a process holds {home.running_lock}, but none has the command line of a server of this home; none was "
            f"ended: find it with `lsof {home.running_lock}`, end it, and try again"
        )
    was_running = process is not None
    while process is not None:
        _end(home, process, timeout)
        process = _server_of(home)
    return was_running


def _end(home: ServerHome, process: psutil.Process, timeout: float) -> None:
    """Terminate a server process, or kill it."""
    for end in (process.terminate, process.kill):
        with suppress(psutil.NoSuchProcess):  # psutil also sends nothing to another process that got the same id
            end()
        if _wait_for_exit(home, process, timeout):
            home.state.unlink(missing_ok=True)
            return
    raise ReviewServerError(
        f"process {process.pid} does not exit after SIGKILL: wait until `ps -p {process.pid}` is empty, then try again"
    )


def _wait_for_exit(home: ServerHome, process: psutil.Process, timeout: float) -> bool:
    """Wait until a server has exited and its lock is released; returns False if not within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while _is_alive(process) or (is_locked(home.running_lock) and _server_of(home) is None):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL)
    return True


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process has not exited; one that its parent has not waited for yet has."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False
