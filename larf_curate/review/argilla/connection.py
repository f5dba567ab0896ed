"""HTTP connection to an Argilla server; failures become this package's errors, and no message contains the API key."""

import ipaddress
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import argilla as rg
import httpx
from argilla._exceptions import ArgillaCredentialsError, ArgillaError, ForbiddenError, UnauthorizedError

from larf_curate.errors import InputError, ReviewError, ReviewServerError
from larf_curate.urls import public_url

MAX_ATTEMPTS = 4
FIRST_WAIT = 0.5
"""Seconds before the second attempt; the wait doubles with each further one."""
BUSY_STATUSES = frozenset({429, 502, 503, 504})
REJECTED_STATUSES = frozenset({400, 409, 413, 422, 500})
"""Statuses of a request that will not succeed unchanged; Argilla also answers 500 to content that it cannot store."""
MAX_REASON_CHARACTERS = 300


class RejectedError(ReviewError):
    """The server rejects the content of a request; the message gives its reason, without the rejected content."""


class Connection:
    """Connection to one workspace on an Argilla server.

    Its ``api_url`` is the address, and ``url`` the same without credentials, for messages and links.

    Args:
        url: Address of the server; default: the environment variable ``ARGILLA_API_URL``.
        api_key: API key of an owner or admin; default: the environment variable ``ARGILLA_API_KEY``.
        workspace: Name of the workspace.
        timeout: Seconds to wait for each response of the server.

    Raises:
        InputError: If the address or the key is malformed.
        ReviewServerError: If either is missing, or the server is down, rejects the key or has no such workspace.
    """

    def __init__(self, url: str | None, api_key: str | None, *, workspace: str, timeout: int) -> None:
        self.api_url = (url or os.environ.get("ARGILLA_API_URL") or "").rstrip("/")
        self.url = public_url(self.api_url)
        key = api_key or os.environ.get("ARGILLA_API_KEY")
        if not self.url or not key:
            wanted = ("key", "api_key=…, --api-key-file", "KEY") if self.api_url else ("address", "url=…, --url", "URL")
            missing = "{} ({} or ARGILLA_API_{})".format(*wanted)
            raise ReviewServerError(
                f"no Argilla {missing} given: set it, or start a server of your own with: larf-curate review up"
            )
        _check_format(self.api_url, key)
        _check_server(self.api_url, key, timeout)
        with translate_errors(self.api_url), _same_log_handlers():
            self.client = rg.Argilla(
                api_url=self.api_url, api_key=key, timeout=timeout, retries=1, trust_env=not is_local(self.api_url)
            )
        self.workspace = workspace
        self.timeout = timeout
        try:
            self.workspace_id = self._workspace_id()
        except ReviewError:
            self.close()  # nobody else could: the caller gets no connection
            raise

    def close(self) -> None:
        """Close the connection."""
        self.client.http_client.close()

    def usernames(self) -> dict[str, str]:
        """User names by user id: members of the workspace and, if the key's owner may list them, all other users."""
        return {user["id"]: user["username"] for user in [*self._members(), *self._all_users()]}

    def reviewers(self) -> list[str]:
        """Names of the users who can open the queues of the workspace: its members and the server's owners."""
        owners = [user for user in self._all_users() if user["role"] == "owner"]
        return sorted({user["username"] for user in [*self._members(), *owners]})

    def departed(self, names: Iterable[str]) -> set[str]:
        """Those names that no account has any more; none if the key's owner may not list all accounts."""
        known = {user["username"] for user in self._all_users()}
        return set(names) - known if known else set()

    def as_user(self, username: str) -> "Connection":
        """A connection on behalf of another user, with the key that the server shows to owners and admins.

        Raises:
            ReviewServerError: If the server does not show it.
        """
        keys = {user["username"]: user["api_key"] for user in [*self._members(), *self._all_users()]}
        if not (key := keys.get(username)):
            raise ReviewServerError(f"the server does not let this API key act for {username!r}: use an owner's key")
        return Connection(self.api_url, key, workspace=self.workspace, timeout=self.timeout)

    def _members(self) -> list[dict[str, Any]]:
        return list(self.request("GET", f"/api/v1/workspaces/{self.workspace_id}/users")["items"])

    def _all_users(self) -> list[dict[str, Any]]:
        """All users of the server; none if the key's owner may not list them."""
        return list(self.request("GET", "/api/v1/users")["items"]) if self.client.me.role == "owner" else []

    def request(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  any JSON value
        """Send one request with a JSON body and parse the JSON response; see `send`."""
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        response = self.send(method, path, content)
        return json.loads(response) if response else None

    def send(self, method: str, path: str, content: bytes | None) -> bytes:
        """Send one request, with retries while the server is busy or the connection fails.

        Retries are safe: every request that this package makes can be repeated without changing its effect.

        Args:
            method: HTTP method.
            path: Path below the server's address.
            content: Body as encoded JSON; None for no body.

        Returns:
            The body of the response.

        Raises:
            RejectedError: If the server rejects the content, or fails on it.
            ReviewServerError: If the server cannot be reached, rejects the key, or stays busy.
        """
        headers = {} if content is None else {"Content-Type": "application/json"}
        for attempt in range(MAX_ATTEMPTS):
            last = attempt == MAX_ATTEMPTS - 1
            try:
                response = self.client.http_client.request(method, path, content=content, headers=headers)
            except httpx.TransportError as error:
                if last:
                    raise _unreachable(self.url, error) from error
            else:
                if response.status_code not in BUSY_STATUSES or last:
                    return self._body(response)
            time.sleep(FIRST_WAIT * 2**attempt)
        raise ReviewServerError(f"{self.url} did not answer")  # not reached: the last attempt returns or raises

    def _body(self, response: httpx.Response) -> bytes:
        if response.is_success:
            return response.content
        if response.status_code in REJECTED_STATUSES:
            raise RejectedError(_reason(response))
        raise _refused(self.url, response.status_code)

    def _workspace_id(self) -> str:
        ids = {item["name"]: item["id"] for item in self.request("GET", "/api/v1/me/workspaces")["items"]}
        if self.workspace not in ids:
            raise ReviewServerError(
                f"no workspace {self.workspace!r} for this user on {self.url}, only {sorted(ids)}: "
                "choose one of them, or ask an owner to create it"
            )
        return str(ids[self.workspace])


def is_local(url: str) -> bool:
    """Whether a server is on this machine: it is never reached through a proxy, which would learn the API key."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(_full_address(host))
    except ValueError:  # a name
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _full_address(host: str) -> str:
    """An IPv4 address in its full form: 127.1 and 2130706433 are 127.0.0.1 too."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return host


@contextmanager
def _same_log_handlers() -> Iterator[None]:
    """Take back the handler that Argilla's client adds to the root logger: how warnings look is the caller's choice."""
    before = list(logging.root.handlers)
    try:
        yield
    finally:
        for handler in [handler for handler in logging.root.handlers if handler not in before]:
            logging.root.removeHandler(handler)


def _check_format(url: str, key: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise InputError(f"wanted a server address that begins with http:// or https://, got {public_url(url)!r}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        # The key is not quoted: a malformed one may still contain most of a real one.
        raise InputError(
            "wanted an API key on one line of ASCII characters without spaces: check the key file or variable"
        )


def _check_server(url: str, key: str, timeout: int) -> None:
    """Check server and API key before the Argilla client connects, since it leaks open sockets if that fails."""
    with translate_errors(url):
        headers = {"X-Argilla-Api-Key": key}
        response = httpx.get(f"{url}/api/v1/me", headers=headers, timeout=timeout, trust_env=not is_local(url))
        if not response.is_success:
            raise _refused(url, response.status_code)
        if "username" not in response.json():
            raise ValueError("not a user")


@contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Re-raise errors of the Argilla client and its HTTP library as this package's errors.

    Raises:
        ReviewError: If the server rejects a request.
        ReviewServerError: If the server cannot be reached, rejects the key, or is not an Argilla server.
    """
    try:
        yield
    except (ArgillaCredentialsError, UnauthorizedError) as error:
        raise _refused(url, 401) from error
    except ForbiddenError as error:
        raise _refused(url, 403) from error
    except ArgillaError as error:
        reason = str(error.__cause__ or error).replace(url, public_url(url))[:MAX_REASON_CHARACTERS]
        raise ReviewError(f"{public_url(url)} rejects the request: {reason}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, error) from error
    except ValueError as error:  # the response is not the JSON that the client expects
        raise ReviewServerError(
            f"{public_url(url)} does not answer like an Argilla server: check the address"
        ) from error


def _refused(url: str, status: int) -> ReviewServerError:
    reasons = {
        401: "refuses the API key: check it (page “my settings” of the server, or ARGILLA_API_KEY)",
        403: "does not allow this with this API key: use the key of an owner or of an admin of the workspace",
        404: "has no such dataset or workspace, or is not an Argilla server: check the address",
    }
    return ReviewServerError(
        f"{public_url(url)} {reasons.get(status, f'answers with status {status}: try again later')}"
    )


def _unreachable(url: str, error: Exception) -> ReviewServerError:
    return ReviewServerError(
        f"no answer from {public_url(url)} ({type(error).__name__}): start the server or check the address, "
        "then run the command again, which resumes where it stopped"
    )


def _reason(response: httpx.Response) -> str:
    """The server's reason for a rejection, without the rejected values that its validation errors repeat."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
    if isinstance(detail, dict):
        detail = detail.get("params", {}).get("errors") or detail.get("params", {}).get("detail") or detail.get("code")
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg')}" for e in detail[:3])
    return str(detail)[:MAX_REASON_CHARACTERS]
