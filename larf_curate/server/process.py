"""The server as a process: who runs, on which port, how it is started and ended."""

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

_LOG_LIMIT = 5_000_000
_PAUSE = 0.1
# The inside package is put last on the path: nothing in this folder may hide a module of the server's environment.
_BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from inside.launch import main; main()"
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "SSL_CERT_FILE", "HF_ENDPOINT", "HF_HUB_OFFLINE")
_REASONS = {
    97: "another server already runs on this home: `larf-curate review down` ends it",
    98: "port {port} on 127.0.0.1 is taken by another program: end it or choose another with --port (0: any free one)",
}


@dataclass(frozen=True)
class Running:
    """The process that serves a home.

    Args:
        pid: Its process id.
        port: The port it listens on, 127.0.0.1 only.
    """

    pid: int
    port: int

    @property
    def url(self) -> str:
        """The address of the web page and the API."""
        return f"http://127.0.0.1:{self.port}"


def running(home: ServerHome) -> Running | None:
    """The process that serves this home, None if there is none.

    The lock tells whether one lives, so a process id left behind by a crash is never taken for the server.
    """
    if not is_locked(home.running_lock):
        return None
    try:
        state = json.loads(home.state.read_text(encoding="utf-8"))
        return Running(int(state["pid"]), int(state["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def launch(python: Path, home: ServerHome, port: int) -> "subprocess.Popen[bytes]":
    """Start the server process; it goes on when this one ends.

    Secrets reach it through the home, not through its arguments or environment.
    """
    if home.log.exists() and home.log.stat().st_size > _LOG_LIMIT:
        os.replace(home.log, home.log.with_suffix(".log.1"))
    environ = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    command = [str(python), "-I", "-W", "ignore", "-c", _BOOT, str(Path(__file__).parent)]
    with open(os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
        return subprocess.Popen(
            [*command, "--home", str(home.path), "--port", str(port)],
            cwd=home.path,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def await_ready(
    process: "subprocess.Popen[bytes]",
    home: ServerHome,
    *,
    port: int,
    timeout: float,
    answers: Callable[[str], bool],
) -> Running:
    """Wait until the server answers.

    Args:
        process: What ``launch`` gave.
        home: Its home.
        port: The port asked for, for the message.
        timeout: Seconds to wait.
        answers: Whether the server at a URL answers with our key.

    Raises:
        ReviewServerError: If the process ends or does not answer in time.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            reason = _REASONS.get(code, f"it ended with code {code} while starting: see {home.log}")
            raise ReviewServerError(f"Argilla could not start: {reason.format(port=port)}")
        state = running(home)
        if state is not None and state.pid == process.pid and answers(state.url):
            return state
        time.sleep(_PAUSE)
    raise ReviewServerError(f"Argilla did not answer within {timeout:.0f} s: see {home.log}, then try again")


def end(home: ServerHome, *, timeout: float) -> bool:
    """End the server of this home: SIGTERM, and SIGKILL if it has not gone after ``timeout`` seconds.

    Returns:
        Whether one ran.

    Raises:
        ReviewServerError: If it cannot be ended.
    """
    if (state := running(home)) is None:
        return False
    for send in (signal.SIGTERM, signal.SIGKILL):
        if not _signal(state.pid, send) or _gone(home, timeout):
            home.state.unlink(missing_ok=True)
            return True
    raise ReviewServerError(f"process {state.pid} does not end: end it by hand, then try again")


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _gone(home: ServerHome, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while is_locked(home.running_lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True
