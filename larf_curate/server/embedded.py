"""The complete Argilla server with its web interface on one machine, without Docker, Elasticsearch or Redis."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from larf_curate.errors import InputError, ReviewServerError
from larf_curate.server import api, process
from larf_curate.server.accounts import USERNAME
from larf_curate.server.addresses import LOOPBACK, Listening, parse_host
from larf_curate.server.archive import Manifest
from larf_curate.server.backup import back_up
from larf_curate.server.credentials import (
    MIN_PASSWORD,
    WORKSPACE,
    Account,
    Credentials,
    ensure_credentials,
    read_credentials,
    weak_passwords,
    write_credentials,
)
from larf_curate.server.doctor import Check, mend_search_index, run_checks
from larf_curate.server.environment import ServerEnvironment
from larf_curate.server.home import ServerHome
from larf_curate.server.locks import locked
from larf_curate.server.restore import Restored, restore

DEFAULT_PORT = 6900
_START_TIMEOUT = 180.0  # seconds
_STOP_TIMEOUT = 15.0  # seconds


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """Status of the server of a home.

    Args:
        running: Whether the server process runs.
        answering: Whether it responds to requests and accepts the owner's key.
        url: URL of the server on this machine; None if it does not run.
        pid: Process id of the server; None if it does not run.
        public_urls: URLs at which other machines reach it; empty if they cannot.
    """

    running: bool
    answering: bool
    url: str | None
    pid: int | None
    public_urls: tuple[str, ...] = ()


def _ignore(_line: str) -> None:
    """Discard a line of progress."""


class EmbeddedServer:
    """A local Argilla server, by default on 127.0.0.1 only.

    Use it as a context manager, or call ``start`` and ``stop``: a started server keeps running when this process exits,
    until it is stopped.

    Args:
        home: Folder of the data; by default ``argilla`` in ``$LARF_CURATE_HOME`` or the platform's data folder.
        port: Port to listen on; 0 takes any free port.
        host: Address or name of this machine to listen on, ``0.0.0.0`` or ``::`` for all addresses; default: 127.0.0.1.
            On others than those of the loopback interface, other machines can sign in, and nothing is encrypted.
        environments: Folder of the virtual environments; by default ``argilla-server`` in the cache folder.
        say: Called with each line of progress of long steps.

    Raises:
        InputError: If the host is none of this machine.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        port: int = DEFAULT_PORT,
        host: str | None = None,
        environments: str | Path | None = None,
        say: Callable[[str], None] = _ignore,
    ) -> None:
        self.home = ServerHome.at(home)
        self.port = port
        self._listening = None if host is None else parse_host(host)
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
        """Virtual environment of the server."""
        return ServerEnvironment.find(self._environments)

    @property
    def credentials(self) -> Credentials:
        """Accounts of this home.

        Raises:
            ReviewServerError: If there are none yet, because the server was never started.
        """
        return read_credentials(self.home.credentials)

    @property
    def api_key(self) -> str:
        """API key of the owner, for the Python client."""
        return self.credentials.owner.api_key

    @property
    def url(self) -> str:
        """URL of the running server.

        Raises:
            ReviewServerError: If the server does not run.
        """
        if (state := process.find_process(self.home)) is None:
            raise ReviewServerError(f"no server runs on {self.home.path}: start it with `larf-curate review up`")
        if not state.listens:  # another program may listen on the port, and would be sent the key
            raise ReviewServerError(f"the server on {self.home.path} is not ready: wait a minute, then try again")
        return state.url

    def start(self) -> str:
        """Start the server unless it runs, and wait until it responds.

        The first start installs Argilla and creates random credentials.

        Returns:
            URL of the server. If it was running already, its port may differ from the requested one.

        Raises:
            ReviewServerError: If the server cannot be installed, its port is taken, or it does not respond in time; if
                it runs already on another address than the host that was given; or if other machines could reach it
                and the password of an account is short.
        """
        listening = self._listening or Listening()
        self.home.make()
        python = self.environment.ensure(self._say)
        with locked(self.home.starting_lock, timeout=_START_TIMEOUT):
            credentials = ensure_credentials(self.home.credentials)
            self.new_credentials = not self.home.database.exists()
            if (state := process.await_process(self.home)) is not None:
                return self._adopt(state, credentials)
            self._check_passwords(credentials, listening)
            self._say("starting Argilla")
            self._reap()  # an earlier process of this object may have been killed in the meantime
            self._process = process.launch(python, self.home, self.port, listening)
            try:
                started = process.wait_until_ready(
                    self.home,
                    process=self._process,
                    port=self.port,
                    address=listening.address,
                    timeout=_START_TIMEOUT,
                    is_answering=lambda found: api.is_answering(found.url, credentials.owner),
                )
            except BaseException:
                self._process.kill()
                self._reap()
                raise
            if started.pid != self._process.pid:  # one that a killed command had just started was faster
                self._reap()
            return started.url

    def _adopt(self, state: process.ServerProcess, credentials: Credentials) -> str:
        """Wait for a server that a killed command left starting, or require that a started one answers."""
        if self._listening is not None and self._listening.address != state.address:
            raise ReviewServerError(
                f"the server on {self.home.path} runs already on {state.address}, not on {self._listening.address}: "
                "run `larf-curate review down` and start it again"
            )
        if not state.listens:
            self._say("waiting for the server that is starting already")
            return process.wait_until_ready(
                self.home,
                timeout=_START_TIMEOUT,
                is_answering=lambda found: api.is_answering(found.url, credentials.owner),
            ).url
        if not api.is_answering(state.url, credentials.owner):
            raise ReviewServerError(
                f"process {state.pid} at {state.url} rejects our key or does not respond: run "
                "`larf-curate review down` and start it again"
            )
        return state.url

    def _check_passwords(self, credentials: Credentials, listening: Listening) -> None:
        """Require that passwords cannot be guessed if other machines reach the server."""
        if listening.is_public and (weak := weak_passwords(credentials)):
            raise ReviewServerError(
                f"other machines could sign in with the passwords of {', '.join(weak)}, which are too short: stop the "
                f"server, put at least {MIN_PASSWORD} random characters into {self.home.credentials} and give the "
                f"account another api_key there, or start it without --host on {LOOPBACK}"
            )

    @property
    def started_here(self) -> bool:
        """Whether this object started the server; False if it was running already."""
        return self._process is not None

    def wait(self) -> None:
        """Wait until the server exits; returns at once if this object did not start it."""
        if self._process is not None:
            self._process.wait()

    def stop(self) -> bool:
        """Stop the server, by SIGKILL if it does not exit by itself.

        Returns:
            Whether a server was running.

        Raises:
            ReviewServerError: If the server does not exit.
        """
        if not self.home.path.exists():
            return False
        with locked(self.home.starting_lock, timeout=_START_TIMEOUT):
            ran = process.terminate(self.home, timeout=_STOP_TIMEOUT)
        self._reap()
        return ran

    def _reap(self) -> None:
        """Wait for the process that this object started, so that it does not remain as a zombie."""
        if self._process is not None:
            self._process.wait()
            self._process = None

    def status(self) -> ServerStatus:
        """Report whether the server runs and responds."""
        state = process.find_process(self.home)
        if state is None:
            return ServerStatus(running=False, answering=False, url=None, pid=None)
        answering = state.listens and api.is_answering(state.url, self.credentials.owner)
        public = tuple(state.public_urls)
        return ServerStatus(running=True, answering=answering, url=state.url, pid=state.pid, public_urls=public)

    def doctor(self) -> list[Check]:
        """Diagnose the server, whether or not it runs; failed checks have a remedy."""
        return run_checks(self.home, lambda: self.environment, self.port)

    def mend_search_index(self) -> int:
        """Build the search index anew where it is damaged or lacks records, whether or not the server runs.

        Returns:
            Number of records that were lacking.

        Raises:
            ReviewServerError: If the databases cannot be read.
        """
        return mend_search_index(self.home)

    def backup(self, path: str | Path, *, queues: Path) -> Manifest:
        """Write the data of the home to one file, whether or not the server runs; see `back_up`.

        Args:
            path: File to write, with mode 0600: it has passwords, API keys and texts.
            queues: Folder with the records of queues.

        Returns:
            What the backup has.
        """
        return back_up(self.home, Path(path), queues=queues)

    def restore(self, path: str | Path, *, queues: Path) -> Restored:
        """Restore a backup into this home, which must not exist or be empty; see `restore`.

        Args:
            path: File that `backup` wrote.
            queues: Folder for the records of queues.

        Returns:
            What was restored; the server is not started.
        """
        return restore(Path(path), self.home, queues=queues)

    def add_user(
        self, username: str, *, role: str = "annotator", workspace: str = WORKSPACE, password: str | None = None
    ) -> Account:
        """Add a user to a workspace; creates the account if it does not exist.

        Args:
            username: 1 to 64 letters, digits and ``. _ - @``; begins with a letter or digit.
            role: ``annotator`` or ``admin``; ignored if the account exists.
            workspace: Name of the workspace; created if it does not exist.
            password: Password, default: a random one; ignored if the account exists.

        Returns:
            The account with its password and API key, which are also stored in the credentials file.

        Raises:
            InputError: If the name is invalid.
            ReviewServerError: If the server does not run or rejects the request.
        """
        if not re.fullmatch(USERNAME, username):
            raise InputError(f"wanted a user name of 1 to 64 letters, digits and . _ - @, got {username[:80]!r}")
        url, credentials = self.url, self.credentials
        account = credentials.account(username)
        known = {user["username"] for user in api.list_users(url, credentials.owner)}
        if account is None or username not in known:  # deleted on the server since: created again
            account = Account.random(username, role=role)
            account = replace(account, password=password or account.password)
            key = api.create_user(url, credentials.owner, account)
            account = replace(account, api_key=key)
            self.update_credentials(lambda credentials: credentials.with_account(account))
        api.add_to_workspace(url, credentials.owner, username, workspace)
        return account

    def update_credentials(self, change: Callable[[Credentials], Credentials]) -> None:
        """Change the credentials file.

        Args:
            change: Returns the credentials to write. It gets those that the file has now: another process may have
                changed them meanwhile.
        """
        with locked(self.home.starting_lock, timeout=_START_TIMEOUT):
            write_credentials(self.home.credentials, change(self.credentials))
