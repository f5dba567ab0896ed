"""The process of the server: find, start and terminate it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from larf_curate.errors import ReviewServerError
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import is_locked

_MAX_LOG_BYTES = 5_000_000
_POLL_INTERVAL = 0.1  # seconds
# This folder goes last on the path, so that `inside` can be imported but nothing here shadows a module of the server's
# environment.
_BOOTSTRAP = "import sys; sys.path.append(sys.argv.pop(1)); from inside.launch import main; main()"
_FORWARDED_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "HF_ENDPOINT", "HF_HUB_OFFLINE")
_EXIT_REASONS = {  # by exit code of `inside.launch`
    97: "another server already runs on this home: stop it with `larf-curate review down`",
    98: "port {port} on 127.0.0.1 is taken by another program: end it or choose another with --port (0: any free one)",
}


@dataclass(frozen=True)
class ServerProcess:
    """A running server process.

    Args:
        pid: Process id.
        port: Port that it listens on, on 127.0.0.1 only.
    """

    pid: int
    port: int

    @property
    def url(self) -> str:
        """URL of the web interface and the API."""
        return f"http://127.0.0.1:{self.port}"


def find_process(home: ServerHome) -> ServerProcess | None:
    """Find the server process of a home; returns None if there is none.

    The lock decides whether a server runs, so the process id in a state file left by a crash is never mistaken for one.
    """
    if not is_locked(home.running_lock):
        return None
    try:
        state = json.loads(home.state.read_text(encoding="utf-8"))
        return ServerProcess(int(state["pid"]), int(state["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def launch(python: Path, home: ServerHome, port: int) -> "subprocess.Popen[bytes]":
    """Start the server process, which keeps running when this process exits.

    It reads secrets from files in the home: arguments are visible to other users, and child processes inherit the
    environment.

    Args:
        python: Interpreter of the server's virtual environment.
        home: Folder of the server.
        port: Port to listen on; 0 takes any free port.

    Returns:
        The process, which may still be starting.
    """
    if home.log.exists() and home.log.stat().st_size > _MAX_LOG_BYTES:
        os.replace(home.log, home.log.with_suffix(".log.1"))
    environment = {name: os.environ[name] for name in _FORWARDED_VARIABLES if name in os.environ}
    command = [str(python), "-I", "-W", "ignore", "-c", _BOOTSTRAP, str(Path(__file__).parent)]
    with open(os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        return subprocess.Popen(
            [*command, "--home", str(home.path), "--port", str(port)],
            cwd=home.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def wait_until_ready(
    process: "subprocess.Popen[bytes]",
    home: ServerHome,
    *,
    port: int,
    timeout: float,
    is_answering: Callable[[str], bool],
) -> ServerProcess:
    """Wait until the server responds to requests.

    Args:
        process: The process that ``launch`` returned.
        home: Folder of the server.
        port: The requested port, for the error message.
        timeout: Seconds to wait.
        is_answering: Whether the server at a URL responds and accepts our key.

    Raises:
        ReviewServerError: If the process exits, or does not respond in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            reason = _EXIT_REASONS.get(code, f"it exited with code {code} while starting: see {home.log}")
            raise ReviewServerError(f"Argilla could not start: {reason.format(port=port)}")
        state = find_process(home)
        if state is not None and state.pid == process.pid and is_answering(state.url):
            return state
        time.sleep(_POLL_INTERVAL)
    raise ReviewServerError(f"Argilla did not respond within {timeout:.0f} s: see {home.log}, then try again")


def terminate(home: ServerHome, *, timeout: float) -> bool:
    """Terminate the server of a home: SIGTERM, then SIGKILL if it still runs after ``timeout`` seconds.

    Returns:
        Whether a server was running.

    Raises:
        ReviewServerError: If the server does not exit even after SIGKILL.
    """
    if (state := find_process(home)) is None:
        return False
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _send_signal(state.pid, number) or _wait_for_exit(home, timeout):
            home.state.unlink(missing_ok=True)
            return True
    raise ReviewServerError(
        f"process {state.pid} does not exit after SIGKILL: wait until `ps -p {state.pid}` is empty, then try again"
    )


def _send_signal(pid: int, number: signal.Signals) -> bool:
    """Send a signal; returns False if the process does not exist."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _wait_for_exit(home: ServerHome, timeout: float) -> bool:
    """Wait until the server's lock is released; returns False if it still is not after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while is_locked(home.running_lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL)
    return True
