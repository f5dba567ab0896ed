"""The connection to an Argilla server: every failure a clear error, no key in any message."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import argilla as rg
import httpx
from argilla._exceptions import ArgillaCredentialsError, ArgillaError, ForbiddenError, UnauthorizedError

from larf_curate.errors import InputError, ReviewError, ReviewServerError

TRIES = 4
FIRST_WAIT = 0.5
BUSY = frozenset({429, 502, 503, 504})
REJECTED = frozenset({400, 409, 413, 422, 500})
REASON_CHARACTERS = 300


class RejectedError(ReviewError):
    """The server refuses what was sent; the message is its reason, without the rejected content."""


class Connection:
    """A client of one workspace on one Argilla server.

    Args:
        url: Address of the server; default: the environment's ``ARGILLA_API_URL``.
        api_key: Key of an owner or admin; default: the environment's ``ARGILLA_API_KEY``.
        workspace: Name of the workspace.
        timeout: Seconds to wait for one answer.

    Raises:
        InputError: If the address or the key cannot be one.
        ReviewServerError: If either is missing, the server is down, refuses the key, or has no such workspace.
    """

    def __init__(self, url: str | None, api_key: str | None, *, workspace: str, timeout: int) -> None:
        self.url = (url or os.environ.get("ARGILLA_API_URL") or "").rstrip("/")
        key = api_key or os.environ.get("ARGILLA_API_KEY")
        if not self.url or not key:
            wanted = ("key", "api_key=…, --api-key-file", "KEY") if self.url else ("address", "url=…, --url", "URL")
            missing = "{} ({} or ARGILLA_API_{})".format(*wanted)
            raise ReviewServerError(
                f"no Argilla {missing} given: set it, or start a server of your own with: larf-curate review up"
            )
        _check_form(self.url, key)
        _check(self.url, key, timeout)
        with clear_errors(self.url):
            self.client = rg.Argilla(api_url=self.url, api_key=key, timeout=timeout, retries=1)
        self.workspace = workspace
        self.timeout = timeout
        try:
            self.workspace_id = self._workspace_id()
        except ReviewError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self.client.http_client.close()

    def usernames(self) -> dict[str, str]:
        """User names by id: of the members of the workspace and, where the key may list them, of everybody."""
        users = self.request("GET", f"/api/v1/workspaces/{self.workspace_id}/users")["items"]
        if self.client.me.role == "owner":
            users += self.request("GET", "/api/v1/users")["items"]
        return {user["id"]: user["username"] for user in users}

    def request(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401  any JSON value
        """Send one request and parse the answer; see `send`."""
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        answer = self.send(method, path, content)
        return json.loads(answer) if answer else None

    def send(self, method: str, path: str, content: bytes | None) -> bytes:
        """Send one request, again when the server is busy or the line breaks: every request here can be repeated.

        Args:
            method: HTTP method.
            path: Path below the server's address.
            content: JSON, encoded.

        Returns:
            The body of the answer.

        Raises:
            RejectedError: If the server refuses the content, or fails on it.
            ReviewServerError: If it cannot be reached, refuses the key, or stays busy.
        """
        headers = {} if content is None else {"Content-Type": "application/json"}
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                response = self.client.http_client.request(method, path, content=content, headers=headers)
            except httpx.TransportError as error:
                if last:
                    raise _unreachable(self.url, error) from error
            else:
                if response.status_code not in BUSY or last:
                    return self._body(response)
            time.sleep(FIRST_WAIT * 2**attempt)
        raise ReviewServerError(f"{self.url} did not answer")

    def _body(self, response: httpx.Response) -> bytes:
        if response.is_success:
            return response.content
        if response.status_code in REJECTED:
            raise RejectedError(_reason(response))
        raise _refused(self.url, response.status_code)

    def _workspace_id(self) -> str:
        known = {item["name"]: item["id"] for item in self.request("GET", "/api/v1/me/workspaces")["items"]}
        if self.workspace not in known:
            raise ReviewServerError(
                f"no workspace {self.workspace!r} for this user on {self.url}, only {sorted(known)}: "
                "choose one of them, or have an owner create it"
            )
        return str(known[self.workspace])


def _check_form(url: str, key: str) -> None:
    if not url.startswith(("http://", "https://")):
        raise InputError(f"wanted a server's address that begins with http:// or https://, got {url!r}")
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError("wanted an API key of one line of letters, digits and signs: look at the file or the variable")


def _check(url: str, key: str, timeout: int) -> None:
    """Ask once who we are: the Argilla client leaves its sockets open when its own first question fails."""
    with clear_errors(url):
        answer = httpx.get(f"{url}/api/v1/me", headers={"X-Argilla-Api-Key": key}, timeout=timeout)
        if not answer.is_success:
            raise _refused(url, answer.status_code)
        if "username" not in answer.json():
            raise ValueError("not a user")


@contextmanager
def clear_errors(url: str) -> Iterator[None]:
    """Turn what the Argilla client and its HTTP library raise into this package's errors."""
    try:
        yield
    except (ArgillaCredentialsError, UnauthorizedError) as error:
        raise _refused(url, 401) from error
    except ForbiddenError as error:
        raise _refused(url, 403) from error
    except ArgillaError as error:
        raise ReviewError(f"{url} refuses: {str(error.__cause__ or error)[:REASON_CHARACTERS]}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, error) from error
    except ValueError as error:  # the answer is not the JSON that the client knows
        raise ReviewServerError(f"{url} does not answer like an Argilla server: check the address") from error


def _refused(url: str, status: int) -> ReviewServerError:
    reasons = {
        401: "refuses the API key: check it (page “my settings” of the server, or ARGILLA_API_KEY)",
        403: "does not allow this to the user of the API key: use the key of an owner or of an admin of the workspace",
        404: "does not have this dataset or workspace, or the address is not that of an Argilla server",
    }
    return ReviewServerError(f"{url} {reasons.get(status, f'answers with status {status}: try again later')}")


def _unreachable(url: str, error: Exception) -> ReviewServerError:
    return ReviewServerError(
        f"no answer from {url} ({type(error).__name__}): start the server, or check the address; "
        "run the command again and it goes on where it stopped"
    )


def _reason(response: httpx.Response) -> str:
    """What the server says, without the rejected values that it repeats."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return f"status {response.status_code}"
    if isinstance(detail, dict):
        detail = detail.get("params", {}).get("errors") or detail.get("params", {}).get("detail") or detail.get("code")
    if isinstance(detail, list):
        detail = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg')}" for e in detail[:3])
    return str(detail)[:REASON_CHARACTERS]
