"""The real Argilla server with its own web page, for one machine: no Docker, no Elasticsearch, no Redis."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.server import api, process
from larf_curate.server.credentials import (
    WORKSPACE,
    Account,
    Credentials,
    ensure_credentials,
    read_credentials,
    write_credentials,
)
from larf_curate.server.doctor import Check, examine
from larf_curate.server.environment import ServerEnvironment
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import locked

DEFAULT_PORT = 6900
_START_TIMEOUT = 180.0
_STOP_TIMEOUT = 15.0


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """Whether the server of a home runs, and where.

    Args:
        running: A process serves the home.
        answering: It answers its API with the owner's key.
        url: Its address, None when it does not run.
        pid: Its process, None when it does not run.
    """

    running: bool
    answering: bool
    url: str | None
    pid: int | None


def _silent(_line: str) -> None:
    """Say nothing."""


class EmbeddedServer:
    """An Argilla server of one's own, bound to 127.0.0.1.

    Use it as a context manager, or call ``start`` and ``stop``; a server that was started goes on when this process
    ends, until somebody stops it.

    Args:
        home: Folder of the data; by default ``argilla`` in ``$LARF_CURATE_HOME`` or the platform's data folder.
        port: Port to listen on; 0 takes any free one.
        environments: Folder of the virtual environments; by default ``argilla-server`` beside the default home.
        say: Is told about long steps, one line at a time.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        port: int = DEFAULT_PORT,
        environments: str | Path | None = None,
        say: Callable[[str], None] = _silent,
    ) -> None:
        self.home = ServerHome.at(home)
        self.port = port
        self.new_credentials = False
        self._environments = environments
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def environment(self) -> ServerEnvironment:
        """The virtual environment that the server runs in."""
        return ServerEnvironment.find(self._environments)

    @property
    def credentials(self) -> Credentials:
        """The accounts of this home; there are none before the first start."""
        return read_credentials(self.home.credentials)

    @property
    def api_key(self) -> str:
        """The owner's key for the Python client."""
        return self.credentials.owner.api_key

    @property
    def url(self) -> str:
        """The address of the running server.

        Raises:
            ReviewServerError: If it does not run.
        """
        if (state := process.running(self.home)) is None:
            raise ReviewServerError(f"no server runs on {self.home.path}: start it with `larf-curate review up`")
        return state.url

    def start(self) -> str:
        """Start the server, or find it running, and wait until it answers.

        The first start installs Argilla and makes random credentials.

        Returns:
            The address. It may have another port than asked for when the server already ran.

        Raises:
            ReviewServerError: If it cannot be installed, or the port is taken, or it does not come up.
        """
        self.home.make()
        python = self.environment.ensure(self._say)
        with locked(self.home.starting_lock, timeout=_START_TIMEOUT):
            credentials = ensure_credentials(self.home.credentials)
            self.new_credentials = not self.home.database.exists()
            if (state := process.running(self.home)) is not None:
                return self._check_answers(state, credentials)
            self._say("starting Argilla")
            self._reap()
            self._process = process.launch(python, self.home, self.port)
            try:
                return process.await_ready(
                    self._process,
                    self.home,
                    port=self.port,
                    timeout=_START_TIMEOUT,
                    answers=lambda url: api.answers(url, credentials.owner),
                ).url
            except BaseException:
                self._process.kill()
                self._reap()
                raise

    @staticmethod
    def _check_answers(state: process.Running, credentials: Credentials) -> str:
        if not api.answers(state.url, credentials.owner):
            raise ReviewServerError(
                f"process {state.pid} serves {state.url} but refuses our key or hangs: run `larf-curate review down` "
                "and start again"
            )
        return state.url

    @property
    def started_here(self) -> bool:
        """Whether this object started the server, as opposed to finding it running."""
        return self._process is not None

    def wait(self) -> None:
        """Wait until the server ends; returns at once if this object did not start it."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> bool:
        """End the server cleanly, by force if it does not go; returns whether one ran.

        Raises:
            ReviewServerError: If it cannot be ended.
        """
        if not self.home.path.exists():
            return False
        with locked(self.home.starting_lock, timeout=_START_TIMEOUT):
            ran = process.end(self.home, timeout=_STOP_TIMEOUT)
        self._reap()
        return ran

    def _reap(self) -> None:
        """Take note of the end of the process that was started here."""
        if self._process is not None:
            self._process.wait()
            self._process = None

    def status(self) -> ServerStatus:
        """Whether the server runs and answers."""
        state = process.running(self.home)
        if state is None:
            return ServerStatus(running=False, answering=False, url=None, pid=None)
        answering = api.answers(state.url, self.credentials.owner)
        return ServerStatus(running=True, answering=answering, url=state.url, pid=state.pid)

    def doctor(self) -> list[Check]:
        """Look for what is wrong, and what would put it right; the server need not run."""
        return examine(self.home, lambda: self.environment, self.port)

    def add_user(self, username: str, *, role: str = "annotator", workspace: str = WORKSPACE) -> Account:
        """Give a person an account in a workspace; an account that is already known only joins the workspace.

        Args:
            username: Letters, digits and ``. _ - @``.
            role: ``annotator`` or ``admin``.
            workspace: Created if it is not there.

        Returns:
            The account with its password and key, which are kept in the credentials file too.

        Raises:
            InputError: If the name cannot be used.
            ReviewServerError: If the server does not run or refuses.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", username):
            raise InputError(f"a user name of 1 to 64 letters, digits and . _ - @ is wanted, got {username[:80]!r}")
        url, credentials = self.url, self.credentials
        account = credentials.account(username)
        if account is None:
            account = Account.random(username, role=role)
            key = api.create_user(url, credentials.owner, account)
            account = Account(username=username, role=role, password=account.password, api_key=key)
            with locked(self.home.starting_lock, timeout=_START_TIMEOUT):
                write_credentials(self.home.credentials, self.credentials.with_account(account))
        api.join_workspace(url, credentials.owner, username, workspace)
        return account
