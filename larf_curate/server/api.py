"""The few requests to the server's HTTP API that the embedded server itself needs."""

from typing import Any

import requests

from larf_curate.errors import ReviewServerError
from larf_curate.server.credentials import Account

_TIMEOUT = 30.0  # seconds


def call(url: str, key: str, method: str, path: str, *, body: dict[str, Any] | None = None) -> requests.Response:
    """Send one request to the server.

    Args:
        url: Base URL of the server.
        key: API key.
        method: HTTP method.
        path: Path below ``/api/v1``.
        body: JSON body.

    Raises:
        ReviewServerError: If there is no response.
    """
    with requests.Session() as session:
        session.trust_env = False  # a proxy set in the environment cannot reach the loopback address
        try:
            return session.request(
                method, f"{url}/api/v1{path}", json=body, headers={"X-Argilla-Api-Key": key}, timeout=_TIMEOUT
            )
        except requests.RequestException as error:
            # Without the cause: the traceback of a failed connection tells a user nothing more.
            raise ReviewServerError(
                f"Argilla at {url} does not respond ({type(error).__name__}): run `larf-curate review doctor`"
            ) from None


def is_answering(url: str, owner: Account) -> bool:
    """Whether our server responds at the URL and accepts its owner's key."""
    try:
        response = call(url, owner.api_key, "GET", "/me")
    except ReviewServerError:
        return False
    return response.status_code == 200 and response.json().get("username") == owner.username


def create_user(url: str, owner: Account, account: Account) -> str:
    """Create a user; returns the API key that the server generated.

    Raises:
        ReviewServerError: If the server rejects the request, for example because the name is taken.
    """
    body = {"first_name": account.username, "username": account.username}
    response = call(
        url, owner.api_key, "POST", "/users", body={**body, "role": account.role, "password": account.password}
    )
    if response.status_code == 409:
        raise ReviewServerError(f"the user {account.username!r} already exists: choose another name")
    return str(_json_or_raise(response, f"create the user {account.username!r}")["api_key"])


def list_users(url: str, owner: Account) -> list[dict[str, Any]]:
    """All users, as returned by the server: their ids, names, roles and API keys.

    Raises:
        ReviewServerError: If the server rejects the request.
    """
    return list(_json_or_raise(call(url, owner.api_key, "GET", "/users"), "list the users")["items"])


def update_user(url: str, owner: Account, user_id: str, changed: dict[str, str]) -> None:
    """Change the role or the password of a user.

    Raises:
        ReviewServerError: If the server rejects the request.
    """
    _json_or_raise(call(url, owner.api_key, "PATCH", f"/users/{user_id}", body=changed), "change a user")


def workspaces_of(url: str, owner: Account, user_id: str) -> dict[str, str]:
    """Ids by name of the workspaces that a user is a member of.

    Raises:
        ReviewServerError: If the server rejects the request.
    """
    response = call(url, owner.api_key, "GET", f"/users/{user_id}/workspaces")
    items = _json_or_raise(response, "list the workspaces of a user")["items"]
    return {item["name"]: item["id"] for item in items}


def remove_from_workspace(url: str, owner: Account, user_id: str, workspace_id: str) -> None:
    """End a user's membership of a workspace; the user's answers stay.

    Raises:
        ReviewServerError: If the server rejects the request.
    """
    response = call(url, owner.api_key, "DELETE", f"/workspaces/{workspace_id}/users/{user_id}")
    if response.status_code != 404:  # 404: the user is no member any more
        _json_or_raise(response, "remove a user from a workspace")


def add_to_workspace(url: str, owner: Account, username: str, workspace: str) -> None:
    """Make a user a member of a workspace, which is created if it does not exist.

    Raises:
        ReviewServerError: If the server rejects the request.
    """
    user_id = next(user["id"] for user in list_users(url, owner) if user["username"] == username)
    workspaces = _json_or_raise(call(url, owner.api_key, "GET", "/me/workspaces"), "list the workspaces")["items"]
    workspace_id = next((item["id"] for item in workspaces if item["name"] == workspace), None)
    if workspace_id is None:
        response = call(url, owner.api_key, "POST", "/workspaces", body={"name": workspace})
        workspace_id = _json_or_raise(response, f"create the workspace {workspace!r}")["id"]
    response = call(url, owner.api_key, "POST", f"/workspaces/{workspace_id}/users", body={"user_id": user_id})
    if response.status_code != 409:  # 409: the user is a member already
        _json_or_raise(response, f"add {username!r} to the workspace {workspace!r}")


def _json_or_raise(response: requests.Response, action: str) -> Any:  # noqa: ANN401  JSON
    if not response.ok:
        raise ReviewServerError(
            f"could not {action}, the server responded with {response.status_code}: run `larf-curate review doctor`"
        )
    return response.json()
