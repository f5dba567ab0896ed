"""The few calls to the server's HTTP API that the embedded server needs itself."""

from typing import Any

import requests

from larf_curate.errors import ReviewServerError
from larf_curate.server.credentials import Account

_TIMEOUT = 30.0


def call(url: str, key: str, method: str, path: str, *, body: dict[str, Any] | None = None) -> requests.Response:
    """Send one request to the loopback address, past any proxy.

    Raises:
        ReviewServerError: If nothing answers.
    """
    with requests.Session() as session:
        session.trust_env = False
        try:
            return session.request(
                method, f"{url}/api/v1{path}", json=body, headers={"X-Argilla-Api-Key": key}, timeout=_TIMEOUT
            )
        except requests.RequestException as error:
            raise ReviewServerError(
                f"Argilla at {url} does not answer ({type(error).__name__}): see `larf-curate review doctor`"
            ) from None


def answers(url: str, owner: Account) -> bool:
    """Whether our server answers at the URL and knows its owner's key."""
    try:
        response = call(url, owner.api_key, "GET", "/me")
    except ReviewServerError:
        return False
    return response.status_code == 200 and response.json().get("username") == owner.username


def create_user(url: str, owner: Account, account: Account) -> str:
    """Create a user; returns the API key that the server gave it.

    Raises:
        ReviewServerError: If the server refuses, for example because the name is taken.
    """
    body = {"first_name": account.username, "username": account.username}
    response = call(
        url, owner.api_key, "POST", "/users", body={**body, "role": account.role, "password": account.password}
    )
    if response.status_code == 409:
        raise ReviewServerError(f"the user {account.username!r} is already there: choose another name")
    return str(_checked(response, f"create the user {account.username!r}")["api_key"])


def join_workspace(url: str, owner: Account, username: str, workspace: str) -> None:
    """Make a user a member of a workspace, which is created if it is not there.

    Raises:
        ReviewServerError: If the server refuses.
    """
    users = _checked(call(url, owner.api_key, "GET", "/users"), "list the users")["items"]
    user = next(user["id"] for user in users if user["username"] == username)
    spaces = _checked(call(url, owner.api_key, "GET", "/me/workspaces"), "list the workspaces")["items"]
    space = next((space["id"] for space in spaces if space["name"] == workspace), None)
    if space is None:
        made = call(url, owner.api_key, "POST", "/workspaces", body={"name": workspace})
        space = _checked(made, f"create the workspace {workspace!r}")["id"]
    joined = call(url, owner.api_key, "POST", f"/workspaces/{space}/users", body={"user_id": user})
    if joined.status_code != 409:
        _checked(joined, f"add {username!r} to the workspace {workspace!r}")


def _checked(response: requests.Response, doing: str) -> Any:  # noqa: ANN401  JSON
    if not response.ok:
        raise ReviewServerError(f"could not {doing}: the server answered {response.status_code}")
    return response.json()
