"""Close what argilla-server 2.8.0 shows to users who need not see it.

- ``GET /records/{id}`` gives annotators the answers of all others. The web interface asks for their own ones only.
- Admins get the API keys of all members of their workspace, with which they could act for them, and for the owner.
"""

from collections.abc import Awaitable, Callable
from typing import Any

Endpoint = Callable[..., Awaitable[Any]]


def apply() -> None:
    """Wrap the endpoints of argilla-server; must run after it is imported and before it serves."""
    from argilla_server.api.routes import api_v1

    endpoints = {
        ("GET", "/records/{record_id}"): _with_own_responses,
        ("GET", "/workspaces/{workspace_id}/users"): _with_own_key,
        ("DELETE", "/workspaces/{workspace_id}/users/{user_id}"): _with_own_key,
    }
    routes = {
        (method, route.path): route for route in api_v1.routes for method in getattr(route, "methods", None) or ()
    }
    for endpoint, wrap in endpoints.items():  # a missing one is an error: another server may show more
        route = routes[endpoint]
        route.dependant.call = wrap(route.dependant.call)


def _with_own_responses(endpoint: Endpoint) -> Endpoint:
    async def get_record(**given: Any) -> Any:  # noqa: ANN401  Record
        from sqlalchemy.orm.attributes import set_committed_value

        record, user = await endpoint(**given), given["current_user"]
        if user.is_annotator:
            own = [response for response in record.responses if response.user_id == user.id]
            set_committed_value(record, "responses", own)  # not a change that could be stored
        return record

    return get_record


def _with_own_key(endpoint: Endpoint) -> Endpoint:
    async def users(**given: Any) -> Any:  # noqa: ANN401  User or Users
        from argilla_server.api.schemas.v1.users import User, Users

        def shown(user: Any) -> Any:  # noqa: ANN401  User
            own = given["current_user"].is_owner or user.id == given["current_user"].id
            return User.model_validate(user).model_copy(update={} if own else {"api_key": ""})

        found = await endpoint(**given)
        return Users(items=[shown(user) for user in found.items]) if hasattr(found, "items") else shown(found)

    return users
